//! Writes without a thread of ours: the kernel takes them (io_uring) and says when they are done. Where it cannot do one at once it uses
//! a thread of its own; if it has none to spare, the write is not taken.
//!
//! ```text
//!  write_to ─▶ queue ─▶ kernel ─▶ the ring's descriptor is readable ─▶ reap: whose it was goes on
//! ```
//!
//! For one thread, on a runtime of tokio that does I/O. The ring keeps what the kernel still reads from, whether anybody waits for it
//! or not, and one that is dropped waits for all of it.
//!
//! Not here: an order among writes, which is for the caller to keep; syncs, which the kernel gives to threads of its own, and those take longer
//! than one of ours.

use crate::Buffer;
use io_uring::{IoUring, Probe, opcode, types};
use rustix::io::Errno;
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    fs::File,
    io,
    os::fd::{AsRawFd, RawFd},
    rc::Rc,
    sync::Arc,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Notify,
};

/// `IORING_ENTER_GETEVENTS` of io_uring_enter(2).
const GET_EVENTS: u32 = 1;
/// So many writes at once, and no more are taken: the kernel has room to tell of twice as many, and would keep the rest to itself.
const ENTRIES: u32 = 64;

/// Writes that the kernel has in hand.
pub struct Ring {
    /// Before the ring: it must be out of the runtime's hands when the descriptor is closed.
    ready: AsyncFd<RawFd>,
    queue: RefCell<IoUring>,
    under_way: RefCell<HashMap<u64, Rc<Write>>>,
    next_id: Cell<u64>,
    /// The kernel refused to take what is in the queue.
    is_broken: Cell<bool>,
    written: Cell<u64>,
}

struct Write {
    buffer: Buffer,
    file: Arc<File>,
    /// As of `write(2)`, an error as a negative number.
    result: Cell<Option<i32>>,
    done: Notify,
}

impl Ring {
    /// An error where the kernel has no io_uring, or does not let us, or knows no such writes (before Linux 5.6). To be called on the
    /// runtime.
    pub fn new() -> io::Result<Ring> {
        // Nobody is interrupted to hear of what is done (Linux 5.19).
        let gentle = IoUring::builder().setup_coop_taskrun().build(ENTRIES);
        let queue = gentle.or_else(|_| IoUring::new(ENTRIES))?;
        let mut known = Probe::new();
        queue.submitter().register_probe(&mut known)?;
        if !known.is_supported(opcode::Write::CODE) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        // SAFETY: the descriptor is the queue's, which is closed after this is gone.
        let ready = unsafe { AsyncFd::register_with_interest(queue.as_raw_fd(), Interest::READABLE) }
            .map_err(io::Error::from)?;
        Ok(Ring {
            ready,
            queue: RefCell::new(queue),
            under_way: RefCell::default(),
            next_id: Cell::new(0),
            is_broken: Cell::new(false),
            written: Cell::new(0),
        })
    }

    /// How many writes the kernel has answered.
    pub fn written(&self) -> u64 {
        self.written.get()
    }

    /// Writes the buffer, less than 2 GiB. `false` when the kernel did not take all of it: then what is on the file is not known, the kernel
    /// is done with it, and it has to be written another way. An error is the file's; or the runtime's, which ends, and then the kernel may
    /// still be at it.
    pub async fn write_to(&self, file: Arc<File>, buffer: Buffer, offset: u64) -> io::Result<bool> {
        let write = Rc::new(Write { buffer, file, result: Cell::new(None), done: Notify::new() });
        if !self.submit(&write, offset) {
            return Ok(false);
        }
        loop {
            self.reap();
            match write.result.get() {
                Some(result) => return is_written(result, write.buffer.len()),
                None => tokio::select! {
                    // Somebody else took note of it. The runtime would not wake us: to epoll the descriptor is not readable any more.
                    () = write.done.notified() => {}
                    readiness = self.ready.readable() => {
                        self.reap();
                        readiness?.clear_ready();
                    }
                },
            }
        }
    }

    /// Gives the write to the kernel. False: that has none of it, and will not have it.
    fn submit(&self, write: &Rc<Write>, offset: u64) -> bool {
        self.reap();
        if self.is_broken.get() || self.under_way.borrow().len() == ENTRIES as usize {
            return false;
        }
        let queue = &mut self.queue.borrow_mut();
        let (start, length) = (write.buffer.as_ptr(), write.buffer.len() as u32);
        let id = self.next_id.replace(self.next_id.get() + 1);
        let file = types::Fd(write.file.as_raw_fd());
        let entry = opcode::Write::new(file, start, length).offset(offset).build().user_data(id);
        // SAFETY: buffer and file are in `under_way` until the kernel is done with them, or it never sees the entry.
        if unsafe { queue.submission().push(&entry) }.is_err() {
            return false;
        }
        self.under_way.borrow_mut().insert(id, write.clone());
        let submitted = loop {
            match queue.submit() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result.is_ok() && queue.submission().is_empty(),
            }
        };
        if !submitted {
            // The entry cannot be taken back, and the kernel would see it with the next one: there must be none.
            self.is_broken.set(true);
            self.under_way.borrow_mut().remove(&id);
        }
        submitted
    }

    /// Takes note of what is done.
    fn reap(&self) {
        let mut queue = self.queue.borrow_mut();
        let mut under_way = self.under_way.borrow_mut();
        for entry in queue.completion() {
            if let Some(write) = under_way.remove(&entry.user_data()) {
                write.result.set(Some(entry.result()));
                write.done.notify_one();
                self.written.set(self.written.get() + 1);
            }
        }
    }
}

/// What the kernel's answer says of a write of so many bytes.
fn is_written(result: i32, length: usize) -> io::Result<bool> {
    if let Ok(written) = usize::try_from(result) {
        return Ok(written == length);
    }
    match Errno::from_raw_os_error(-result) {
        // Not now, or no thread of the kernel's to be had for it; or not by a ring at all. If the file is to blame, a thread of ours will hear
        // of it as well.
        Errno::AGAIN | Errno::INTR | Errno::CANCELED | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOMEM => {
            Ok(false)
        }
        error => Err(error.into()),
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("under_way", &self.under_way.borrow().len()).finish_non_exhaustive()
    }
}

impl Drop for Ring {
    /// What is under way may read from memory and write to files until it is done.
    fn drop(&mut self) {
        self.reap();
        while !self.under_way.borrow().is_empty() {
            let wait_for_one = || {
                // SAFETY: nothing is submitted, and there is no signal mask.
                unsafe { self.queue.borrow().submitter().enter::<()>(0, 1, GET_EVENTS, None) }
            };
            match wait_for_one() {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    // Better lost than given to somebody else while the kernel reads from it.
                    std::mem::forget(self.under_way.take());
                }
                _ => self.reap(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BLOCK_BYTES;
    use std::{
        fs::OpenOptions,
        io::{Read, Write as _},
        os::{fd::OwnedFd, unix::fs::FileExt},
        task::Poll,
        time::Duration,
    };

    fn filled(blocks: usize, byte: u8) -> Buffer {
        let mut buffer = Buffer::of(blocks * BLOCK_BYTES);
        buffer.fill(byte);
        buffer
    }

    const PIPE_BYTES: usize = 64 << 10;

    /// What is written to it stays under way until somebody reads.
    fn full_pipe() -> (io::PipeReader, Arc<File>) {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(&vec![0; PIPE_BYTES]).unwrap();
        (reader, Arc::new(File::from(OwnedFd::from(writer))))
    }

    fn read_all(mut reader: io::PipeReader, blocks: usize) -> std::thread::JoinHandle<()> {
        std::thread::spawn(move || {
            let mut found = vec![0; PIPE_BYTES + blocks * BLOCK_BYTES];
            reader.read_exact(&mut found).unwrap();
            assert!(found[PIPE_BYTES..].iter().all(|byte| *byte == 7));
        })
    }

    /// With a ring, if this kernel has any, which is not to be doubted where OVS_TEST_IO_URING is set.
    fn with_ring<F: Future<Output = ()>>(case: impl FnOnce(Ring) -> F) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            match Ring::new() {
                Ok(ring) => case(ring).await,
                Err(error) if std::env::var_os("OVS_TEST_IO_URING").is_some() => panic!("{error}"),
                Err(error) => eprintln!("not tried, there is no io_uring here: {error}"),
            }
        });
    }

    #[test]
    fn what_is_written_together_is_all_there() {
        with_ring(|ring| async move {
            let file = Arc::new(tempfile::tempfile().unwrap());
            let write = |at: usize| {
                ring.write_to(file.clone(), filled(1 + at % 3, at as u8), (4 * at * BLOCK_BYTES) as u64)
            };
            let taken = futures_util::future::join_all((0..60).map(write)).await;
            assert!(taken.into_iter().all(|taken| taken.unwrap()));
            for at in 0..60 {
                let mut found = vec![0; (1 + at % 3) * BLOCK_BYTES];
                file.read_exact_at(&mut found, (4 * at * BLOCK_BYTES) as u64).unwrap();
                assert!(found.iter().all(|byte| *byte == at as u8), "write {at}");
            }
            assert!(ring.under_way.borrow().is_empty());
        });
    }

    #[test]
    fn what_does_not_fit_is_not_taken() {
        with_ring(|ring| async move {
            let (reader, file) = full_pipe();
            let count = 3 * ENTRIES as usize;
            let mut writes: Vec<_> =
                (0..count).map(|_| Box::pin(ring.write_to(file.clone(), filled(1, 7), 0))).collect();
            for (number, write) in writes.iter_mut().enumerate() {
                match futures_util::poll!(write) {
                    Poll::Pending => assert!(number < ENTRIES as usize),
                    Poll::Ready(taken) => assert!(number >= ENTRIES as usize && !taken.unwrap()),
                }
            }
            let reading = read_all(reader, ENTRIES as usize);
            for write in writes.into_iter().take(ENTRIES as usize) {
                assert!(write.await.unwrap());
            }
            reading.join().unwrap();
            // And there is room again.
            let file = Arc::new(tempfile::tempfile().unwrap());
            assert!(ring.write_to(file, filled(1, 1), 0).await.unwrap());
        });
    }

    #[test]
    fn what_the_file_refuses_is_told() {
        with_ring(|ring| async move {
            let path = tempfile::NamedTempFile::new().unwrap();
            let file = Arc::new(OpenOptions::new().read(true).open(path.path()).unwrap());
            let error = ring.write_to(file, filled(1, 1), 0).await.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(Errno::BADF.raw_os_error()));
        });
    }

    #[test]
    fn what_an_answer_says() {
        let says = |result: i32| is_written(result, 8192).map_err(|error| error.raw_os_error());
        let refused = |errno: Errno| says(-errno.raw_os_error());
        assert_eq!((says(8192), says(4096), says(0)), (Ok(true), Ok(false), Ok(false)));
        for errno in
            [Errno::AGAIN, Errno::INTR, Errno::CANCELED, Errno::INVAL, Errno::OPNOTSUPP, Errno::NOMEM]
        {
            assert_eq!(refused(errno), Ok(false), "{errno}");
        }
        for errno in [Errno::IO, Errno::NOSPC, Errno::BADF, Errno::ROFS] {
            assert_eq!(refused(errno), Err(Some(errno.raw_os_error())));
        }
    }

    #[test]
    fn a_write_that_is_cut_short_is_not_taken() {
        with_ring(|ring| async move {
            let (mut reader, file) = full_pipe();
            reader.read_exact(&mut [0; BLOCK_BYTES]).unwrap();
            assert!(!ring.write_to(file, filled(2, 7), 0).await.unwrap());
        });
    }

    /// Its completion is taken note of by another write, and to epoll nothing has happened then.
    #[test]
    fn nobody_is_forgotten_whose_write_somebody_else_found_done() {
        with_ring(|ring| async move {
            let (reader, file) = full_pipe();
            let null = Arc::new(OpenOptions::new().write(true).open("/dev/null").unwrap());
            let waiting = async { assert!(ring.write_to(file, filled(1, 7), 0).await.unwrap()) };
            let other = async {
                tokio::task::yield_now().await;
                read_all(reader, 1).join().unwrap();
                assert!(ring.write_to(null, filled(1, 1), 0).await.unwrap());
            };
            let both = futures_util::future::join(waiting, other);
            tokio::time::timeout(Duration::from_secs(20), both).await.expect("it waits for ever");
        });
    }

    /// There is room again when the kernel is done with them.
    #[test]
    fn a_ring_full_of_writes_that_nobody_waits_for_takes_others_later() {
        with_ring(|ring| async move {
            let (reader, file) = full_pipe();
            for _ in 0..ENTRIES {
                let mut gone = Box::pin(ring.write_to(file.clone(), filled(1, 7), 0));
                assert!(futures_util::poll!(&mut gone).is_pending());
            }
            let null = Arc::new(OpenOptions::new().write(true).open("/dev/null").unwrap());
            assert!(!ring.write_to(null.clone(), filled(1, 1), 0).await.unwrap());
            read_all(reader, ENTRIES as usize).join().unwrap();
            assert!(ring.write_to(null, filled(1, 1), 0).await.unwrap());
        });
    }

    #[test]
    fn a_ring_that_is_dropped_waits_for_what_is_under_way() {
        with_ring(|ring| async move {
            let (reader, file) = full_pipe();
            let mut gone = Box::pin(ring.write_to(file.clone(), filled(1, 7), 0));
            assert!(futures_util::poll!(&mut gone).is_pending());
            drop(gone);
            assert_eq!(ring.under_way.borrow().len(), 1);
            let reading = read_all(reader, 1);
            drop(ring);
            assert_eq!(Arc::strong_count(&file), 1);
            drop(file);
            reading.join().unwrap();
        });
    }
}
