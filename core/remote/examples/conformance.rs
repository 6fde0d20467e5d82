//! The conformance suite against stores that run: integration/test_engines.py starts them.
//!
//! ```text
//! conformance STORE suite | probe | load SECONDS
//!
//! STORE, as JSON: a RemoteStore | {"dir": PATH} | {"policy": "K,M,C,X", "of": [STORE, ...]}, a coded backend over those
//! $OVS_STORE_NAME_N, $OVS_STORE_SECRET_N: of the N-th RemoteStore in it, from 0
//! ```
//!
//! `suite` panics at the first rule that is broken. `probe` prints its report. `load` puts, gets, lists and deletes for so
//! long, whatever becomes of the stores meanwhile: only `Retry` is allowed for, and the last line says what there was of it.

use anyhow::{Context as _, anyhow, bail, ensure};
use bytes::Bytes;
use ovs_backend::{
    Backend, BackendError, DirBackend, DirOptions, ObjectName, Urgency,
    coded::{CodedBackend, Drive, Duty, Policy, Preset, Work},
    conformance::{self, Rules},
};
use ovs_remote::{Credentials, RemoteBackend, RemoteOptions, RemoteStore};
use serde::Deserialize;
use std::{
    collections::BTreeSet,
    env,
    hash::{BuildHasher, RandomState},
    path::PathBuf,
    rc::Rc,
    time::Duration,
};
use tokio::{runtime::Handle, task::LocalSet, time::Instant};
use uuid::Uuid;

const RETRY: Duration = Duration::from_secs(4);
const PATIENCE: Duration = Duration::from_secs(2);

/// What is asked.
#[derive(Deserialize)]
#[serde(untagged)]
enum Store {
    Composite { policy: String, of: Vec<Store> },
    Dir { dir: PathBuf },
    Remote(RemoteStore),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [store, rest @ ..] = &arguments[..] else {
        bail!("usage: conformance STORE suite | probe | load SECONDS")
    };
    let store: Store = serde_json::from_str(store).context("the store's description")?;
    let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
    let is_load = rest.first() == Some(&"load");
    // Another one in each process.
    let seed = RandomState::new().hash_one(0);
    let options = match is_load {
        true => RemoteOptions { retry: RETRY, patience: PATIENCE, ..RemoteOptions::new(seed) },
        false => RemoteOptions::new(seed),
    };
    // A composite asks drives for what they have one after the other, each of them for as long as it tries.
    let rounds = if matches!(store, Store::Composite { .. }) { 3 } else { 1 };
    let longest = (RETRY + 3 * PATIENCE) * rounds;
    let mut opening = Opening { options, remotes: Vec::new() };
    let (backend, rules) = opening.open(store)?;
    let started = Instant::now();
    let work = async {
        match rest[..] {
            ["suite"] => conformance::check_backend(&*backend, rules).await,
            ["probe"] => {
                let remote = opening.remotes.first().context("only stores are probed")?;
                println!("{}", serde_json::to_string(&remote.probe().await?)?);
            }
            ["load", seconds] => load(&*backend, Duration::from_secs(seconds.parse()?), longest).await?,
            _ => bail!("what? {rest:?}"),
        }
        Ok(())
    };
    LocalSet::new().run_until(work).await?;
    eprintln!("{} in {} ms", rest.join(" "), started.elapsed().as_millis());
    Ok(())
}

struct Opening {
    options: RemoteOptions,
    /// Those that are open, in their order.
    remotes: Vec<RemoteBackend>,
}

impl Opening {
    /// With the rules that it keeps.
    fn open(&mut self, store: Store) -> anyhow::Result<(Rc<dyn Backend>, Rules)> {
        Ok(match store {
            Store::Dir { dir } => (Rc::new(DirBackend::open(DirOptions::new(dir))?), Rules::ALL),
            Store::Remote(store) => {
                let number = self.remotes.len();
                let variable = |what| env::var(format!("OVS_STORE_{what}_{number}"));
                let credentials = Credentials::new(variable("NAME")?, variable("SECRET")?);
                let remote =
                    RemoteBackend::open(store, credentials, self.options.clone(), Handle::current())?;
                self.remotes.push(remote.clone());
                (Rc::new(remote), Rules::OBJECTS)
            }
            Store::Composite { policy, of } => {
                let numbers: Vec<u8> = policy.split(',').map(str::parse).collect::<Result<_, _>>()?;
                let [data, parity, acknowledged, per_node] = numbers[..] else {
                    bail!("{policy} is no policy")
                };
                let policy = Policy::new(data, parity, acknowledged, per_node.into())?;
                let drives: Vec<Drive> = of
                    .into_iter()
                    .zip(1..)
                    .map(|(store, number)| self.drive(store, number))
                    .collect::<Result<_, _>>()?;
                let coded = CodedBackend::new(drives, Preset::new(vec![policy])?, Work::OnThreads)?;
                (Rc::new(coded), Rules { folders: false, lengths: false })
            }
        })
    }

    fn drive(&mut self, store: Store, number: u128) -> anyhow::Result<Drive> {
        let (backend, _) = self.open(store).with_context(|| anyhow!("drive {number}"))?;
        let (node, site) = (format!("n{number}"), "here".to_owned());
        Ok(Drive { id: Uuid::from_u128(number), node, site, weight: 1, backend, duty: Duty::Serving })
    }
}

/// What a load saw.
#[derive(Default, serde::Serialize)]
struct Totals {
    puts: u64,
    gets: u64,
    lists: u64,
    deletes: u64,
    retries: u64,
    /// Of these so many were deletes: a composite's need the answers of all its drives.
    retries_of_deletes: u64,
    longest_ms: u128,
    /// In the last two seconds.
    retries_at_the_end: u64,
}

fn bytes_of(number: u64) -> Bytes {
    let length = 1 + (number * 7919 % 300_000) as usize;
    (0..length).map(|at| (number as usize * 31 + at / 7) as u8).collect()
}

fn name_of(number: u64) -> ObjectName {
    ObjectName::new(format!("load/{number:08}")).expect("a good name")
}

struct Load<'a> {
    backend: &'a dyn Backend,
    totals: Totals,
    ends: Instant,
    /// How long one operation may take.
    longest: Duration,
}

impl Load<'_> {
    /// `None`: the store did not answer. More than once the bounds of an operation: wrong.
    async fn ask<T>(
        &mut self,
        call: impl Future<Output = Result<T, BackendError>>,
    ) -> anyhow::Result<Option<T>> {
        let asked = Instant::now();
        let answer = call.await;
        let took = asked.elapsed();
        self.totals.longest_ms = self.totals.longest_ms.max(took.as_millis());
        ensure!(took < self.longest, "an operation took {took:?}");
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(error @ BackendError::Retry { .. }) => {
                eprintln!("after {took:?}: {error}");
                self.totals.retries += 1;
                if self.ends.saturating_duration_since(Instant::now()) < Duration::from_secs(2) {
                    self.totals.retries_at_the_end += 1;
                }
                Ok(None)
            }
            Err(error) => bail!(error),
        }
    }
}

async fn load(backend: &dyn Backend, time: Duration, longest: Duration) -> anyhow::Result<()> {
    let mut load = Load { backend, totals: Totals::default(), ends: Instant::now() + time, longest };
    // Acknowledged; and those of which nobody knows, until they are asked for again.
    let (mut stored, mut unknown) = (BTreeSet::new(), BTreeSet::new());
    let mut number = 0;
    while Instant::now() < load.ends {
        let mut puts = Vec::new();
        for again in std::mem::take(&mut unknown) {
            puts.push(again);
        }
        puts.push(number);
        number += 1;
        for put in puts {
            match load.ask(load.backend.put(&name_of(put), vec![bytes_of(put)], Urgency::Normal)).await? {
                Some(()) => stored.insert(put),
                None => unknown.insert(put),
            };
            load.totals.puts += 1;
        }
        let Some(&read) = stored.range(number / 2..).next().or(stored.first()) else { continue };
        let expected = bytes_of(read);
        if let Some(got) = load.ask(load.backend.get(&name_of(read))).await? {
            ensure!(got == expected, "object {read} has other bytes");
        }
        let (from, length) = (expected.len() as u64 / 3, 5000);
        if let Some(got) = load.ask(load.backend.get_range(&name_of(read), from, length)).await? {
            let end = expected.len().min((from + length) as usize);
            ensure!(got[..] == expected[from as usize..end], "a range of object {read} has other bytes");
        }
        load.totals.gets += 2;
        if number % 8 == 0 {
            if let Some(found) = load.ask(load.backend.list("load/", None, 100_000)).await? {
                let found: BTreeSet<u64> =
                    found.iter().filter_map(|info| info.name.as_str()[5..].parse().ok()).collect();
                ensure!(stored.is_subset(&found), "not listed: {:?}", stored.difference(&found));
                load.totals.lists += 1;
            }
            let first = *stored.first().expect("there is one");
            // Whatever is answered: it may be gone from here on.
            stored.remove(&first);
            match load.ask(load.backend.delete(&name_of(first))).await? {
                Some(()) => {
                    load.totals.deletes += 1;
                    let gone = load.backend.get(&name_of(first)).await;
                    ensure!(gone.is_err(), "object {first} was deleted and is read");
                }
                None => load.totals.retries_of_deletes += 1,
            }
        }
    }
    for left in stored.iter().chain(&unknown) {
        let got = load.backend.get(&name_of(*left)).await;
        ensure!(
            !stored.contains(left) || got == Ok(bytes_of(*left)),
            "object {left} at the end: {:?}",
            got.err()
        );
    }
    println!("{}", serde_json::to_string(&load.totals)?);
    Ok(())
}
