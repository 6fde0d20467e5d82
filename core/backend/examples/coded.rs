//! For benchmarks: what a coded backend over directories costs beside one directory alone (tests/bench/coded.py).
//!
//! ```text
//! coded FOLDER one|plain|sealed random|half MIB OBJECT_MIB STEP...
//! ```
//!
//! `one` is a directory; `plain` is six of them under policy (4,2), acknowledged with 5 of 6; `sealed` the same with LZ4 and AES-256-GCM.
//! All are made in FOLDER, which must not be there before, and are left there. Objects of OBJECT_MIB, MIB of them in all, are bytes that
//! cannot be compressed, or that can to about half. Each step prints a line of JSON:
//!
//! ```text
//! write       puts all objects, as many at once as a vDisk does, until every fragment is stored
//! read        reads them in their order, 1 MiB at a time, 4 at once
//! without-N   the same where N drives answer that they are away
//! slow        the same where one drive answers 100 ms late
//! cold        4 KiB of objects that nothing is known of, drive by drive what that takes; and once more of the same object
//! encode      the parity of as many bytes, by this thread, and nothing else
//! rebuild     a drive is lost, an empty one added, and all objects looked after
//! beside      (after rebuild) the same once more, and meanwhile all objects are read as by `read`; and read before that, with the drive lost
//! ```
//!
//! Before a step that reads, nothing is known of any object, and the page cache has nothing of them.

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use ovs_backend::coded::{CodedBackend, Compression, Drive, Duty, Key, Policy, Preset, Work};
use ovs_backend::{
    Backend, CountingBackend, DirBackend, DirOptions, Fault, FaultyBackend, ObjectName, Operation, Urgency,
};
use reed_solomon_erasure::galois_8::ReedSolomon;
use rustix::fs::{Advice, fadvise};
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    num::NonZeroU32,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};
use tokio::{
    task::LocalSet,
    time::{Instant, sleep},
};
use uuid::Uuid;

const MIB: usize = 1 << 20;
const BLOCK_BYTES: usize = 4096;
const DATA: u8 = 4;
const PARITY: u8 = 2;
const ACKNOWLEDGED: u8 = 5;
const DRIVES: usize = 6;
/// SCOs of one vDisk on their way at once (`PUTS_MAX` of core/volume/src/vdisk/destage.rs).
const PUTS_AT_ONCE: usize = 4;
const READ_BYTES: usize = MIB;
const READS_AT_ONCE: usize = 4;
const LATE: Duration = Duration::from_millis(100);
const COLD_READS: usize = 64;
const COLD_BYTES: u64 = 4096;
/// Of a cold read: who was asked for less gave headers and indexes, and no frame. A frame that cannot be compressed has 32 KiB.
const HEADERS_BYTES_MAX: u64 = 4096;
/// Of /proc/PID/stat, on every architecture that this is built for.
const TICKS_PER_SECOND: f64 = 100.0;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    One,
    Plain,
    Sealed,
}

struct Bench {
    folder: PathBuf,
    kind: Kind,
    /// What every object has behind its first bytes, which are its number.
    base: Bytes,
    objects: u64,
}

/// How the drives of a step answer.
#[derive(Clone, Copy)]
enum Drives {
    Well,
    /// So many of them not at all.
    Without(usize),
    /// The first one late.
    Slow,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, kind, content, mib, object_mib, steps @ ..] = &arguments[..] else {
        bail!("usage: coded FOLDER one|plain|sealed random|half MIB OBJECT_MIB STEP...")
    };
    let kind = match kind.as_str() {
        "one" => Kind::One,
        "plain" => Kind::Plain,
        "sealed" => Kind::Sealed,
        other => bail!("{other}: one, plain or sealed"),
    };
    let half = match content.as_str() {
        "random" => false,
        "half" => true,
        other => bail!("{other}: random or half"),
    };
    let (mib, object_mib): (u64, usize) =
        (mib.parse().context("MIB")?, object_mib.parse().context("OBJECT_MIB")?);
    ensure!(object_mib > 0 && mib >= object_mib as u64, "an object of {object_mib} MiB, {mib} in all");
    let objects = mib / object_mib as u64;
    fs::create_dir(folder).with_context(|| format!("{folder} is made here"))?;
    let bench = Bench { folder: folder.into(), kind, base: content_of(object_mib * MIB, half), objects };
    let work = async {
        for step in steps {
            println!("{}", bench.step(step).await.with_context(|| step.clone())?);
        }
        Ok(())
    };
    LocalSet::new().run_until(work).await
}

impl Bench {
    async fn step(&self, step: &str) -> Result<Value> {
        let drives = match step {
            "slow" => Drives::Slow,
            "without-1" => Drives::Without(1),
            "without-2" => Drives::Without(2),
            _ => Drives::Well,
        };
        if step != "write" {
            drop_from_page_cache(&self.folder)?;
        }
        let mut found = match step {
            "write" => self.write().await,
            "read" | "slow" | "without-1" | "without-2" => self.read(drives).await,
            "cold" => self.cold().await,
            "encode" => Ok(self.encode()),
            "rebuild" => self.rebuild().await,
            "beside" => self.beside().await,
            other => bail!("{other} is no step"),
        }?;
        found["step"] = json!(step);
        Ok(found)
    }

    fn bytes(&self) -> u64 {
        self.objects * self.base.len() as u64
    }

    fn preset(&self) -> Result<Preset> {
        let preset = Preset::new(vec![Policy::new(DATA, PARITY, ACKNOWLEDGED, DRIVES as u32)?])?;
        if self.kind != Kind::Sealed {
            return Ok(preset);
        }
        let key = Key::new(NonZeroU32::MIN, &[7; 32]);
        Ok(preset.with_compression(Compression::Lz4).with_keys(vec![key])?)
    }

    fn directory(&self, number: usize) -> Result<DirBackend> {
        // As ovsd opens them.
        let path = self.folder.join(format!("drive-{number}"));
        Ok(DirBackend::open(DirOptions { io_uring: true, ..DirOptions::new(path) })?)
    }

    fn coded(&self, backends: Vec<Rc<dyn Backend>>) -> Result<CodedBackend> {
        let drives = backends.into_iter().enumerate().map(|(number, backend)| drive(number, backend));
        Ok(CodedBackend::new(drives.collect(), self.preset()?, Work::OnThreads)?)
    }

    /// Opened anew: nothing is known of what is there.
    fn open(&self, drives: Drives) -> Result<Opened> {
        if self.kind == Kind::One {
            return Ok(Opened::One(self.directory(0)?));
        }
        let backend = |number: usize| -> Result<Rc<dyn Backend>> {
            let directory = self.directory(number)?;
            Ok(match drives {
                Drives::Without(count) if number < count => {
                    Rc::new(FaultyBackend::new(directory, |_| Some(Fault::ErrorBefore)))
                }
                Drives::Slow if number == 0 => Rc::new(FaultyBackend::new(directory, |call| {
                    (call.operation == Operation::Get).then(|| Fault::Delay(Box::pin(sleep(LATE))))
                })),
                _ => Rc::new(directory),
            })
        };
        let backends = (0..DRIVES).map(backend).collect::<Result<_>>()?;
        Ok(Opened::Coded(self.coded(backends)?))
    }

    fn parts(&self, number: u64) -> Vec<Bytes> {
        let mut first = self.base[..BLOCK_BYTES].to_vec();
        first[..8].copy_from_slice(&number.to_le_bytes());
        let pieces =
            (0..self.base.len()).step_by(MIB).map(|at| self.base.slice(at.max(BLOCK_BYTES)..at + MIB));
        std::iter::once(first.into()).chain(pieces).collect()
    }

    /// Is this what was put?
    fn check(&self, number: u64, offset: usize, bytes: &[u8]) -> Result<()> {
        let own = if offset == 0 { 8 } else { 0 };
        let is_same = bytes[..own] == number.to_le_bytes()[..own]
            && bytes[own..] == self.base[offset + own..offset + bytes.len()];
        ensure!(is_same, "object {number} has other bytes at {offset}");
        Ok(())
    }

    async fn write(&self) -> Result<Value> {
        let opened = self.open(Drives::Well)?;
        let meter = Meter::new()?;
        let puts = (0..self.objects).map(async |number| {
            opened.backend().put(&name(number)?, self.parts(number), Urgency::Normal).await?;
            anyhow::Ok(())
        });
        stream::iter(puts).buffer_unordered(PUTS_AT_ONCE).try_collect::<()>().await?;
        if let Opened::Coded(coded) = &opened {
            coded.settle().await;
        }
        let mut found = meter.read(self.bytes())?;
        let mut stored = 0;
        each_file(&self.folder, &mut |path| {
            // Beside objects there are a marker and a reserve.
            let is_object = path.strip_prefix(&self.folder)?.components().count() > 2;
            stored += if is_object { fs::metadata(path)?.len() } else { 0 };
            Ok(())
        })?;
        found["stored_bytes"] = json!(stored);
        Ok(found)
    }

    async fn read(&self, drives: Drives) -> Result<Value> {
        let opened = self.open(drives)?;
        let mut found = self.read_all(opened.backend()).await?;
        if let Opened::Coded(coded) = &opened {
            let stats = coded.stats();
            ensure!(stats.bad_fragments == 0, "{} fragments are bad", stats.bad_fragments);
            (found["reconstructed"], found["hedged"]) = (json!(stats.reconstructed), json!(stats.hedged));
        }
        Ok(found)
    }

    async fn read_all(&self, backend: &dyn Backend) -> Result<Value> {
        let meter = Meter::new()?;
        let offsets = || (0..self.base.len()).step_by(READ_BYTES);
        let places = (0..self.objects).flat_map(|number| offsets().map(move |offset| (number, offset)));
        let reads = places.map(async |(number, offset)| {
            let began = Instant::now();
            let bytes = backend.get_range(&name(number)?, offset as u64, READ_BYTES as u64).await?;
            let took = began.elapsed();
            ensure!(bytes.len() == READ_BYTES, "object {number} ends at {offset} + {}", bytes.len());
            self.check(number, offset, &bytes)?;
            Ok(took)
        });
        let mut took: Vec<Duration> = stream::iter(reads).buffered(READS_AT_ONCE).try_collect().await?;
        let mut found = meter.read(self.bytes())?;
        took.sort_unstable();
        let ms = |share: f64| took[(share * (took.len() - 1) as f64) as usize].as_secs_f64() * 1000.0;
        (found["p50_ms"], found["p99_ms"]) = (json!(ms(0.5)), json!(ms(0.99)));
        Ok(found)
    }

    async fn cold(&self) -> Result<Value> {
        ensure!(self.kind != Kind::One, "a directory has no fragments");
        let directories: Vec<DirBackend> =
            (0..DRIVES).map(|number| self.directory(number)).collect::<Result<_>>()?;
        let (mut first, mut next) = (Counted::default(), Counted::default());
        let mut random = Random::new();
        for _ in 0..COLD_READS {
            let counting: Vec<Rc<CountingBackend<DirBackend>>> = directories
                .iter()
                .map(|directory| Rc::new(CountingBackend::new(directory.clone())))
                .collect();
            let backends = counting.iter().map(|drive| Rc::clone(drive) as Rc<dyn Backend>).collect();
            let coded = self.coded(backends)?;
            let number = random.below(self.objects);
            for counted in [&mut first, &mut next] {
                let offset = random.below(self.base.len() as u64 / COLD_BYTES) * COLD_BYTES;
                let before: Vec<_> = counting.iter().map(|drive| drive.counts().get).collect();
                let began = Instant::now();
                let bytes = coded.get_range(&name(number)?, offset, COLD_BYTES).await?;
                let took = began.elapsed();
                self.check(number, offset as usize, &bytes)?;
                let drives = counting.iter().zip(before).map(|(drive, before)| {
                    let now = drive.counts().get;
                    (now.calls - before.calls, now.bytes - before.bytes)
                });
                counted.add(drives, took);
            }
        }
        Ok(json!({ "reads": COLD_READS, "first": first.found(), "next": next.found() }))
    }

    fn encode(&self) -> Value {
        let fragment_bytes = 4 * MIB;
        let data: Vec<Vec<u8>> = (0..usize::from(DATA))
            .map(|number| {
                let piece = self.base.iter().cycle().skip(number * fragment_bytes).take(fragment_bytes);
                piece.copied().collect()
            })
            .collect();
        let code = ReedSolomon::new(DATA.into(), PARITY.into()).expect("a good code");
        let mut parity = vec![vec![0; fragment_bytes]; PARITY.into()];
        let chunk_bytes = (data.len() * fragment_bytes) as u64;
        let chunks = self.bytes().div_ceil(chunk_bytes);
        let meter = Meter::new().expect("/proc is there");
        for _ in 0..chunks {
            code.encode_sep(&data, &mut parity).expect("as many and as long as the code is made for");
        }
        meter.read(chunks * chunk_bytes).expect("/proc is there")
    }

    async fn rebuild(&self) -> Result<Value> {
        let Opened::Coded(coded) = self.open(Drives::Well)? else { bail!("a directory has no parity") };
        let added = drive(DRIVES, Rc::new(self.directory(DRIVES)?));
        let meter = Meter::new()?;
        ensure!(coded.set_duty(id(0), Duty::Lost), "there is no such drive");
        coded.add_drive(added)?;
        let survey = coded.look_after(true).await;
        let mut found = meter.read(self.bytes())?;
        ensure!(survey.unreadable == 0 && survey.unmended == 0, "{survey:?}");
        ensure!(survey.all.objects == self.objects && survey.done_with == [id(0)], "{survey:?}");
        found["made_bytes"] = json!(coded.upkeep().bytes_mended);
        Ok(found)
    }

    async fn beside(&self) -> Result<Value> {
        let well = |number| Ok(drive(number, Rc::new(self.directory(number)?)));
        let drives = (1..=DRIVES).map(well).collect::<Result<_>>()?;
        let coded = CodedBackend::new(drives, self.preset()?, Work::OnThreads)?;
        ensure!(coded.set_duty(id(1), Duty::Lost), "there is no such drive");
        coded.add_drive(well(DRIVES + 1)?)?;
        let alone = self.read_all(&coded).await?;
        drop_from_page_cache(&self.folder)?;
        let mut found = tokio::select! {
            found = self.read_all(&coded) => found?,
            _ = coded.look_after(true) => bail!("all was made again before all was read"),
        };
        ensure!(coded.upkeep().bytes_mended > 0, "nothing was made again meanwhile");
        (found["alone_mb_s"], found["made_bytes"]) =
            (alone["mb_s"].clone(), json!(coded.upkeep().bytes_mended));
        Ok(found)
    }
}

enum Opened {
    One(DirBackend),
    Coded(CodedBackend),
}

impl Opened {
    fn backend(&self) -> &dyn Backend {
        match self {
            Opened::One(directory) => directory,
            Opened::Coded(coded) => coded,
        }
    }
}

fn id(number: usize) -> Uuid {
    Uuid::from_u128(0x51ab_0000 + number as u128)
}

fn drive(number: usize, backend: Rc<dyn Backend>) -> Drive {
    let (node, site) = ("n1".to_owned(), String::new());
    Drive { id: id(number), node, site, weight: 1, backend, duty: Duty::Serving }
}

fn name(number: u64) -> Result<ObjectName> {
    Ok(ObjectName::new(format!("v/{}/s/{number:016x}", Uuid::from_u128(1)))?)
}

/// What cold reads took, at most.
#[derive(Default)]
struct Counted {
    calls: u64,
    bytes: u64,
    /// Drives that gave more than headers, …
    drives: u64,
    /// … and what they gave.
    frames_bytes: u64,
    headers_bytes: u64,
    took: Vec<Duration>,
}

impl Counted {
    /// Calls and bytes of each drive.
    fn add(&mut self, drives: impl Iterator<Item = (u64, u64)>, took: Duration) {
        let drives: Vec<(u64, u64)> = drives.collect();
        let gives_frames = |bytes: &u64| *bytes > HEADERS_BYTES_MAX;
        let bytes = || drives.iter().map(|(_, bytes)| *bytes);
        self.calls = self.calls.max(drives.iter().map(|(calls, _)| calls).sum());
        self.bytes = self.bytes.max(bytes().sum());
        self.drives = self.drives.max(bytes().filter(gives_frames).count() as u64);
        self.frames_bytes = self.frames_bytes.max(bytes().filter(gives_frames).sum());
        self.headers_bytes = self.headers_bytes.max(bytes().filter(|bytes| !gives_frames(bytes)).sum());
        self.took.push(took);
    }

    fn found(mut self) -> Value {
        self.took.sort_unstable();
        let Counted { calls, bytes, drives, frames_bytes, headers_bytes, took } = self;
        json!({
            "calls": calls,
            "bytes": bytes,
            "drives": drives,
            "frames_bytes": frames_bytes,
            "headers_bytes": headers_bytes,
            "p50_ms": took[took.len() / 2].as_secs_f64() * 1000.0,
        })
    }
}

/// Time, and processor time of all threads.
struct Meter {
    began: Instant,
    cpu_seconds: f64,
}

impl Meter {
    fn new() -> Result<Meter> {
        Ok(Meter { began: Instant::now(), cpu_seconds: cpu_seconds()? })
    }

    fn read(&self, bytes: u64) -> Result<Value> {
        let (seconds, cpu) = (self.began.elapsed().as_secs_f64(), cpu_seconds()? - self.cpu_seconds);
        Ok(
            json!({ "seconds": seconds, "cpu_seconds": cpu, "bytes": bytes, "mb_s": bytes as f64 / seconds / 1e6 }),
        )
    }
}

fn cpu_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit_once(") ").context("/proc/self/stat")?.1.split(' ');
    let ticks = fields.skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(ticks as f64 / TICKS_PER_SECOND)
}

/// Bytes that begin where direct I/O may. `half`: 2 KiB of each 4 are zeros.
fn content_of(length: usize, half: bool) -> Bytes {
    let mut memory = vec![0u8; length + BLOCK_BYTES];
    let start = memory.as_ptr().align_offset(BLOCK_BYTES);
    let mut random = Random::new();
    for (number, word) in memory[start..start + length].chunks_exact_mut(8).enumerate() {
        if !half || number % (BLOCK_BYTES / 8) < BLOCK_BYTES / 16 {
            word.copy_from_slice(&random.next().to_le_bytes());
        }
    }
    Bytes::from(memory).slice(start..start + length)
}

struct Random(u64);

impl Random {
    fn new() -> Random {
        Random(0x9e37_79b9_7f4a_7c15)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

fn each_file(folder: &Path, visit: &mut dyn FnMut(&Path) -> Result<()>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => each_file(&entry.path(), visit)?,
            false => visit(&entry.path())?,
        }
    }
    Ok(())
}

/// What is below a folder is on the disk afterwards, and nowhere else.
fn drop_from_page_cache(folder: &Path) -> Result<()> {
    each_file(folder, &mut |path| {
        let file = File::open(path)?;
        file.sync_data()?;
        Ok(fadvise(&file, 0, None, Advice::DontNeed)?)
    })
}
