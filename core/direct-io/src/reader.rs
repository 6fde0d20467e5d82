//! Reads without a thread for each: one thread gives all of them to the kernel (io_uring), and hears of what is done.
//!
//! ```text
//!  read ─▶ waiting ─▶ the thread ─▶ kernel
//!                         └─▶ who asked ◀─┘
//! ```
//!
//! A thread of its own, since the kernel may wait for a slow device while it takes a read: nobody else is to wait with it. So who
//! reads from several devices has a reader for each.
//!
//! Not here: reads of which the page cache has everything, which need no thread at all; files that cannot say whether a read
//! would wait, for which the kernel has fewer threads than we do.

use bytes::Bytes;
use io_uring::{IoUring, opcode, types};
use rustix::{
    event::{EventfdFlags, eventfd},
    io::Errno,
};
use std::{
    collections::{HashMap, VecDeque},
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::oneshot;

/// So many reads at once; the kernel has room to tell of twice as many.
const ENTRIES: u32 = 512;
/// What the read of the alarm is known as; reads count from zero.
const ALARM: u64 = u64::MAX;

/// After so many rings that the kernel did not serve well, no more are made.
const FAILURES_MAX: u32 = 3;

/// Reads of files. Nothing runs before the first one, and nothing after this is dropped, but for what the kernel still works on.
#[derive(Debug, Default)]
pub struct Reader {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    answered: AtomicU64,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Read>,
    state: State,
    failures: u32,
}

/// The thread is …
#[derive(Debug, Default)]
enum State {
    #[default]
    NotStarted,
    /// … at work, and looks at the queue before it sleeps.
    AtWork(Arc<OwnedFd>),
    /// … asleep until a read is done, or this is written to.
    Asleep(Arc<OwnedFd>),
    /// … gone, or about to go when nothing is under way any more.
    Ended,
}

#[derive(Debug)]
struct Read {
    file: Arc<File>,
    offset: u64,
    length: usize,
    answer: oneshot::Sender<Answer>,
}

/// What the kernel said, as of `read(2)`, an error as a negative number, and the memory. Not sent when it was not asked.
type Answer = (i32, Vec<u8>);

impl Queue {
    /// It is not asleep any more. What has to be rung if it was.
    fn wake(&mut self) -> Option<&OwnedFd> {
        let State::Asleep(alarm) = &mut self.state else { return None };
        self.state = State::AtWork(Arc::clone(alarm));
        match &self.state {
            State::AtWork(alarm) => Some(alarm),
            _ => None,
        }
    }
}

impl Reader {
    /// One that has not read yet.
    pub fn new() -> Reader {
        Reader::default()
    }

    /// How many reads the kernel has answered.
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::Relaxed)
    }

    /// Reads so many bytes, less than 2 GiB. `None` when that has to be done another way: there is no io_uring, or it does not take such
    /// reads, or the file ends before. An error is the file's. Works on any runtime, but one whose time is paused does not know that
    /// somebody waits.
    pub async fn read(&self, file: Arc<File>, offset: u64, length: usize) -> io::Result<Option<Bytes>> {
        let (answer, told) = oneshot::channel();
        if !self.ask(Read { file, offset, length, answer }) {
            return Ok(None);
        }
        let Ok((result, bytes)) = told.await else { return Ok(None) };
        if let Ok(read) = usize::try_from(result) {
            return Ok((read == length).then(|| bytes.into()));
        }
        match Errno::from_raw_os_error(-result) {
            // Not by a ring, and so not the next one either.
            errno @ (Errno::INVAL | Errno::OPNOTSUPP) => {
                self.shared.end(Some(&errno.into()));
            }
            // Not now, or no thread of the kernel's to be had for it.
            errno if is_passing(errno) => {}
            error => return Err(error.into()),
        }
        Ok(None)
    }

    fn ask(&self, read: Read) -> bool {
        let mut queue = self.shared.queue();
        if let State::NotStarted = queue.state
            && let Ok(alarm) = Shared::start(&self.shared)
        {
            queue.state = State::AtWork(alarm);
        }
        match queue.state {
            // A thread or a descriptor may be had later.
            State::NotStarted | State::Ended => return false,
            State::AtWork(_) | State::Asleep(_) => queue.waiting.push_back(read),
        }
        if let Some(alarm) = queue.wake() {
            ring(alarm);
        }
        true
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.end(None);
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(shared: &Arc<Shared>) -> io::Result<Arc<OwnedFd>> {
        let alarm = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let (of_thread, shared) = (Arc::clone(&alarm), Arc::clone(shared));
        std::thread::Builder::new().name("cold-reads".to_owned()).spawn(move || match open_ring() {
            Ok(ring) => Thread::new(ring, of_thread, shared).serve(),
            Err(error) => shared.end(Some(&error)),
        })?;
        Ok(alarm)
    }

    /// No more reads, for this reason if there is one. Who waits is not answered, which says that the kernel was not asked.
    fn end(&self, reason: Option<&io::Error>) {
        let (waiting, state) = {
            let mut queue = self.queue();
            (std::mem::take(&mut queue.waiting), std::mem::replace(&mut queue.state, State::Ended))
        };
        if let State::AtWork(alarm) | State::Asleep(alarm) = &state {
            ring(alarm);
        }
        if let (Some(error), State::AtWork(_) | State::Asleep(_)) = (reason, &state) {
            tracing::info!(%error, "no io_uring for cold reads here: threads read");
        }
        drop(waiting);
    }

    /// The ring failed, and its thread goes. The next read begins with another, unless that has been tried often enough.
    fn fail(&self, error: &io::Error) {
        let waiting = {
            let mut queue = self.queue();
            queue.failures += 1;
            if !matches!(queue.state, State::Ended) {
                queue.state = if queue.failures < FAILURES_MAX { State::NotStarted } else { State::Ended };
            }
            std::mem::take(&mut queue.waiting)
        };
        tracing::warn!(%error, "io_uring did not take cold reads: threads read what it does not take");
        drop(waiting);
    }
}

/// It counts, and has room for more than we will ever ring.
fn ring(alarm: &OwnedFd) {
    let _ = rustix::io::write(alarm, &1_u64.to_ne_bytes());
}

/// Of the thread that calls this. What is done is looked at when it asks, and not before (Linux 6.1).
fn open_ring() -> io::Result<IoUring> {
    let patient = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(ENTRIES);
    patient.or_else(|_| IoUring::new(ENTRIES))
}

/// The kernel's reasons not to do it now.
fn is_passing(errno: Errno) -> bool {
    matches!(errno, Errno::AGAIN | Errno::INTR | Errno::CANCELED | Errno::NOMEM)
}

/// What the thread has.
struct Thread {
    ring: IoUring,
    under_way: HashMap<u64, UnderWay>,
    next_id: u64,
    alarm: Arc<OwnedFd>,
    /// What the kernel reads the alarm into, while it waits for it.
    alarm_bytes: Option<Box<[u8; 8]>>,
    shared: Arc<Shared>,
}

/// Kept, untouched, until the kernel is done with it.
struct UnderWay {
    memory: Vec<u8>,
    _file: Arc<File>,
    answer: oneshot::Sender<Answer>,
}

impl Thread {
    fn new(ring: IoUring, alarm: Arc<OwnedFd>, shared: Arc<Shared>) -> Thread {
        Thread { ring, under_way: HashMap::new(), next_id: 0, alarm, alarm_bytes: None, shared }
    }

    /// Until the reader ends and nothing is under way.
    fn serve(mut self) {
        while !self.take() || !self.under_way.is_empty() {
            let woken = self.ring.submit_and_wait(1);
            self.shared.queue().wake();
            let answered = match woken {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
                _ => self.answer(),
            };
            if let Err(error) = answered {
                return self.shared.fail(&error);
            }
        }
    }

    /// Prepares what waits, and to be woken up. True when there will be no more.
    fn take(&mut self) -> bool {
        let shared = Arc::clone(&self.shared);
        let mut queue = shared.queue();
        while self.under_way.len() < ENTRIES as usize - 1
            && let Some(read) = queue.waiting.pop_front()
        {
            // Nobody may be waiting any more.
            if !read.answer.is_closed() {
                self.prepare(read);
            }
        }
        if let State::Ended = queue.state {
            return true;
        }
        if queue.waiting.is_empty() {
            queue.state = State::Asleep(Arc::clone(&self.alarm));
        }
        drop(queue);
        if self.alarm_bytes.is_none() {
            let bytes = self.alarm_bytes.insert(Box::default());
            let alarm = types::Fd(self.alarm.as_raw_fd());
            let entry = opcode::Read::new(alarm, bytes.as_mut_ptr(), bytes.len() as u32).build();
            self.push(&entry.user_data(ALARM));
        }
        false
    }

    fn prepare(&mut self, read: Read) {
        let Read { file, offset, length, answer } = read;
        let mut memory = vec![0; length];
        let entry = opcode::Read::new(types::Fd(file.as_raw_fd()), memory.as_mut_ptr(), length as u32);
        let id = self.next_id;
        self.next_id += 1;
        self.under_way.insert(id, UnderWay { memory, _file: file, answer });
        self.push(&entry.offset(offset).build().user_data(id));
    }

    /// There is room: what is in the queue is under way too, or the alarm's.
    fn push(&mut self, entry: &io_uring::squeue::Entry) {
        // SAFETY: memory and file are in `self` until the kernel is done with them, or leaked when that is not known.
        unsafe { self.ring.submission().push(entry) }.expect("a queue of as many entries");
    }

    /// Tells who asked.
    fn answer(&mut self) -> io::Result<()> {
        for entry in self.ring.completion() {
            if entry.user_data() == ALARM {
                self.alarm_bytes = None;
                let failed = (entry.result() < 0).then(|| Errno::from_raw_os_error(-entry.result()));
                if let Some(errno) = failed.filter(|errno| !is_passing(*errno)) {
                    return Err(errno.into());
                }
            } else if let Some(UnderWay { memory, answer, .. }) = self.under_way.remove(&entry.user_data()) {
                self.shared.answered.fetch_add(1, Ordering::Relaxed);
                let _ = answer.send((entry.result(), memory));
            }
        }
        Ok(())
    }
}

impl Drop for Thread {
    /// What the kernel may still write to is better lost than given to somebody else. Who waits for it reads another way.
    fn drop(&mut self) {
        for (_, UnderWay { memory, .. }) in self.under_way.drain() {
            std::mem::forget(memory);
        }
        std::mem::forget(self.alarm_bytes.take());
        if std::thread::panicking() {
            self.shared.end(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::join_all;
    use std::{
        io::{PipeWriter, Write},
        os::unix::fs::FileExt,
        time::Duration,
    };

    /// If this kernel has any io_uring, which is not to be doubted where OVS_TEST_IO_URING is set.
    fn with_reader<F: Future<Output = ()>>(case: impl FnOnce(Reader) -> F) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            if let Err(error) = IoUring::new(1) {
                assert!(std::env::var_os("OVS_TEST_IO_URING").is_none(), "{error}");
                return eprintln!("not tried, there is no io_uring here: {error}");
            }
            let case = case(Reader::new());
            tokio::time::timeout(Duration::from_secs(60), case).await.expect("it waits for ever");
        });
    }

    fn byte_at(offset: usize) -> u8 {
        (offset ^ offset >> 8 ^ offset >> 16) as u8
    }

    fn file_of(length: usize) -> Arc<File> {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&(0..length).map(byte_at).collect::<Vec<_>>(), 0).unwrap();
        Arc::new(file)
    }

    fn pipe() -> (Arc<File>, PipeWriter) {
        let (reader, writer) = io::pipe().unwrap();
        (Arc::new(File::from(OwnedFd::from(reader))), writer)
    }

    async fn check(reader: &Reader, file: &Arc<File>, offset: usize, length: usize) {
        let found = reader.read(file.clone(), offset as u64, length).await.unwrap().unwrap();
        assert!(found.iter().copied().eq((offset..offset + length).map(byte_at)), "{length} from {offset}");
    }

    #[test]
    fn what_is_read_is_what_is_there_or_nothing() {
        with_reader(|reader| async move {
            let file = file_of(10_000);
            for (offset, length) in [(0, 10_000), (4095, 2), (9_999, 1), (10_000, 0), (0, 0)] {
                check(&reader, &file, offset, length).await;
            }
            for (offset, length) in [(9_999, 2), (10_000, 1), (1 << 40, 4096)] {
                assert_eq!(reader.read(file.clone(), offset, length).await.unwrap(), None, "it ends before");
            }
            check(&reader, &file, 7, 8).await;
            assert_eq!(reader.answered(), 9);
        });
    }

    #[test]
    fn more_than_the_kernel_takes_at_once_are_read_in_turn() {
        with_reader(|reader| async move {
            let file = file_of(1 << 20);
            let reads =
                (0..5 * ENTRIES as usize).map(|number| check(&reader, &file, 400 * number, number % 5000));
            join_all(reads).await;
            assert_eq!(reader.answered(), 5 * u64::from(ENTRIES));
        });
    }

    /// Each finds the thread asleep, about to sleep, or waking up.
    #[test]
    fn reads_of_several_threads_one_at_a_time() {
        with_reader(|reader| async move {
            let (reader, file) = (Arc::new(reader), file_of(1 << 20));
            let threads: Vec<_> = (0..3)
                .map(|thread| {
                    let (reader, file) = (reader.clone(), file.clone());
                    std::thread::spawn(move || {
                        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                        runtime.block_on(async {
                            for number in 0..2000 {
                                check(&reader, &file, number * 500 + thread, 100).await;
                            }
                        });
                    })
                })
                .collect();
            let ended = tokio::task::spawn_blocking(|| threads.into_iter().for_each(|t| t.join().unwrap()));
            ended.await.unwrap();
            assert_eq!(reader.answered(), 6000);
        });
    }

    #[test]
    fn what_the_file_refuses_is_told_and_others_are_read() {
        with_reader(|reader| async move {
            let (_reader, writer) = io::pipe().unwrap();
            let only_written = Arc::new(File::from(OwnedFd::from(writer)));
            let error = reader.read(only_written, 0, 1).await.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(Errno::BADF.raw_os_error()));
            check(&reader, &file_of(9), 1, 8).await;
        });
    }

    /// A device that hangs: who reads from it waits, others do not, until there is no room; and who gave up is not asked for later.
    #[test]
    fn reads_that_hang_hold_up_nobody_while_there_is_room() {
        with_reader(|reader| async move {
            let (hung, mut writer) = pipe();
            let file = file_of(9);
            let room = ENTRIES as usize - 1;
            let mut hanging: Vec<_> =
                (0..room - 1).map(|_| Box::pin(reader.read(hung.clone(), 0, 1))).collect();
            for read in &mut hanging {
                assert!(futures_util::poll!(read).is_pending());
            }
            check(&reader, &file, 0, 9).await;
            let mut last = Box::pin(reader.read(hung.clone(), 0, 1));
            assert!(futures_util::poll!(&mut last).is_pending());
            let mut behind = Box::pin(check(&reader, &file, 0, 9));
            let mut given_up = Box::pin(reader.read(hung.clone(), 0, 1));
            assert!(futures_util::poll!(&mut behind).is_pending());
            assert!(futures_util::poll!(&mut given_up).is_pending());
            drop(given_up);
            writer.write_all(&vec![7; room]).unwrap();
            for read in hanging.into_iter().chain([last]) {
                assert_eq!(read.await.unwrap().unwrap()[..], [7]);
            }
            behind.await;
            check(&reader, &file, 1, 3).await;
            assert_eq!(reader.answered(), room as u64 + 3, "nobody reads what nobody waits for");
        });
    }

    /// Nobody waits for a hung device at the end, and what it still writes to is not somebody else's by then.
    #[test]
    fn a_reader_that_is_dropped_waits_for_nothing() {
        with_reader(|reader| async move {
            let (hung, mut writer) = pipe();
            let mut read = Box::pin(reader.read(hung.clone(), 0, 4));
            assert!(futures_util::poll!(&mut read).is_pending());
            let file = file_of(9);
            check(&reader, &file, 0, 9).await;
            drop(read);
            let shared = Arc::downgrade(&reader.shared);
            drop(reader);
            assert!(Arc::strong_count(&hung) == 2 && shared.strong_count() == 1, "the thread has both");
            writer.write_all(&[1; 4]).unwrap();
            while shared.strong_count() > 0 {
                tokio::task::yield_now().await;
            }
            assert_eq!(Arc::strong_count(&hung), 1);
        });
    }

    /// The alarm cannot be read, so that its thread goes, twice; who waits hears of it, and the third time nobody is asked any more.
    #[test]
    fn who_waits_for_a_ring_that_fails_reads_another_way() {
        with_reader(|reader| async move {
            let (hung, _writer) = pipe();
            let file = file_of(9);
            for failures in 1..=FAILURES_MAX {
                // The thread of the round before would else take what is meant for this one's.
                let is_at_work = || matches!(reader.shared.queue().state, State::AtWork(_));
                while is_at_work() {
                    tokio::task::yield_now().await;
                }
                let (_reader, writer) = io::pipe().unwrap();
                let alarm = Arc::new(OwnedFd::from(writer));
                reader.shared.queue().state = State::AtWork(alarm.clone());
                let mut under_way = Box::pin(reader.read(hung.clone(), 0, 1));
                assert!(futures_util::poll!(&mut under_way).is_pending());
                let shared = reader.shared.clone();
                let thread = std::thread::spawn(|| Thread::new(open_ring().unwrap(), alarm, shared).serve());
                assert_eq!(under_way.await.unwrap(), None);
                thread.join().unwrap();
                assert_eq!(reader.shared.queue().failures, failures);
                if failures < FAILURES_MAX {
                    check(&reader, &file, 0, 9).await;
                }
            }
            assert_eq!(reader.read(file, 0, 9).await.unwrap(), None);
        });
    }

    #[test]
    fn a_reader_that_has_ended_takes_nothing() {
        with_reader(|reader| async move {
            let file = file_of(9);
            check(&reader, &file, 0, 9).await;
            reader.shared.end(None);
            assert_eq!(reader.read(file, 0, 9).await.unwrap(), None);
        });
    }
}
