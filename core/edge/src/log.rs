//! A log that never holds up I/O: lines go through a bounded queue to a thread that writes them to standard error. A
//! reader that has stopped reading (a stuck journald whose disk is a vDisk of ours) costs lines, not requests.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

/// Lines that wait to be written at most.
const QUEUE_LENGTH_MAX: usize = 4096;

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Starts logging; `OVS_LOG` says what (`info` when it is not set).
pub fn start(format: LogFormat) -> io::Result<()> {
    let filter = EnvFilter::try_from_env("OVS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = Lines::start(io::stderr())?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(lines).with_ansi(false);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

/// The queue's near end.
#[derive(Debug, Clone)]
struct Lines {
    queue: SyncSender<Vec<u8>>,
    lost: Arc<AtomicU64>,
}

/// One line: tracing writes each event with one `write_all`.
#[derive(Debug)]
struct Line<'a> {
    lines: &'a Lines,
}

impl Lines {
    fn start(out: impl Write + Send + 'static) -> io::Result<Lines> {
        let (queue, lines) = sync_channel(QUEUE_LENGTH_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&lost);
        thread::Builder::new().name("ovs-log".to_owned()).spawn(move || write_out(out, &lines, &counter))?;
        Ok(Lines { queue, lost })
    }
}

fn write_out(mut out: impl Write, lines: &Receiver<Vec<u8>>, lost: &AtomicU64) {
    for line in lines {
        let _ = out.write_all(&line);
        let lost = lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let _ = writeln!(out, "{lost} log lines were dropped: nobody read them fast enough");
        }
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { lines: self }
    }
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.lines.queue.try_send(bytes.to_vec()).is_err() {
            self.lines.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Writes only while its lock is free.
    #[derive(Clone, Default)]
    struct Slow(Arc<Mutex<Vec<u8>>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_stopped_costs_lines_and_no_time() {
        let out = Slow::default();
        let lines = Lines::start(out.clone()).unwrap();
        let stopped = out.0.lock().unwrap();
        for _ in 0..QUEUE_LENGTH_MAX * 2 {
            lines.make_writer().write_all(b"x\n").unwrap();
        }
        assert!(lines.lost.load(Ordering::Relaxed) >= QUEUE_LENGTH_MAX as u64 - 1);
        drop(stopped);
        drop(lines);
        let wait = std::time::Duration::from_millis(10);
        for _ in 0..500 {
            if String::from_utf8_lossy(&out.0.lock().unwrap()).contains("dropped") {
                return;
            }
            thread::sleep(wait);
        }
        panic!("the log does not say that lines were lost");
    }
}
