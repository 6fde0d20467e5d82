//! The copying itself, between an image and an NBD client: knows neither vDisks nor files' names.

use crate::{
    failure::Failure,
    image::{EXTENT_SIZE_BYTES_MAX, Extent, ImageError, Sink, Source, zeros},
};
use futures_util::stream::{FuturesUnordered, StreamExt, iter};
use ovs_api::ProblemKind;
use ovs_nbd::{Client, ClientError};
use ovs_units::{ByteCount, ByteOffset, ByteRange};
use std::io;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

/// Writes or reads in flight, each of up to 2 MiB.
const REQUESTS_IN_FLIGHT: usize = 16;
/// Extents that are read ahead of the network, or behind it.
const EXTENTS_AHEAD: usize = 8;
/// How much is asked for in one block status request.
const STATUS_SIZE_BYTES: u64 = 1 << 30;
/// One read.
const READ_SIZE_BYTES: u64 = 1 << 20;

/// Why a copy stopped.
#[derive(Debug, Error)]
pub enum CopyError {
    /// The image cannot be read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The image cannot be written.
    #[error("cannot write the image: {0}")]
    Sink(io::Error),
    /// The vDisk cannot be read or written.
    #[error(transparent)]
    Nbd(#[from] ClientError),
    /// Making room for more did not work.
    #[error("cannot make the vDisk larger")]
    Grow(Failure),
    /// A thread of ours ended before its work.
    #[error("a thread of this program ended early")]
    Thread,
}

impl From<CopyError> for Failure {
    fn from(error: CopyError) -> Failure {
        let text = error.to_string();
        match error {
            CopyError::Image(error) => error.into(),
            CopyError::Nbd(error) => error.into(),
            CopyError::Grow(failure) => failure,
            CopyError::Sink(error) if error.kind() == io::ErrorKind::StorageFull => {
                Failure::new(ProblemKind::NoSpace, text)
            }
            CopyError::Sink(_) => Failure::new(ProblemKind::Unavailable, text),
            CopyError::Thread => Failure::new(ProblemKind::Internal, text),
        }
    }
}

/// Copies an image into a vDisk, to its end, and flushes. Gives the image's size.
///
/// `must_zero`: the vDisk may hold something, so zeros are written too. `grow` is called before anything is written
/// past what it was last told or `room`; `None` where the vDisk has its size. `progress` hears how far the copy is.
pub async fn fill_image(
    source: Box<dyn Source>,
    client: &Client,
    must_zero: bool,
    mut room: ByteCount,
    mut grow: impl AsyncFnMut(ByteCount) -> Result<ByteCount, Failure>,
    mut progress: impl FnMut(ByteOffset),
) -> Result<ByteCount, CopyError> {
    let mut extents = read_ahead(source);
    let mut in_flight = FuturesUnordered::new();
    let mut end = ByteOffset(0);
    while let Some(extent) = extents.recv().await {
        let extent = extent?;
        end = extent.end();
        // Zeros past the end of a vDisk are there as soon as it has its size.
        if end.0 > room.0 && matches!(extent, Extent::Data { .. }) {
            room = grow(ByteCount(end.0)).await.map_err(CopyError::Grow)?;
        }
        while in_flight.len() >= REQUESTS_IN_FLIGHT {
            if let Some(written) = in_flight.next().await {
                let () = written?;
            }
        }
        progress(end);
        match extent {
            Extent::Zeros { .. } if !must_zero => {}
            extent => in_flight.push(write(client, extent)),
        }
    }
    while let Some(written) = in_flight.next().await {
        let () = written?;
    }
    client.flush().await?;
    Ok(ByteCount(end.0))
}

async fn write(client: &Client, extent: Extent) -> Result<(), ClientError> {
    match extent {
        Extent::Data { start, bytes } => client.write(start, bytes, false).await,
        Extent::Zeros { start, length } => client.zero(ByteRange { start, length }, false).await,
    }
}

/// Reads on a thread of its own, which ends when nobody listens any more.
fn read_ahead(mut source: Box<dyn Source>) -> mpsc::Receiver<Result<Extent, ImageError>> {
    let (sender, receiver) = mpsc::channel(EXTENTS_AHEAD);
    std::thread::spawn(move || {
        loop {
            let runs = match source.next_extent() {
                Ok(Some(extent)) => zeros::split(extent).into_iter().map(Ok).collect(),
                Ok(None) => return,
                Err(error) => vec![Err(error)],
            };
            for run in runs {
                let is_last = run.is_err();
                if sender.blocking_send(run).is_err() || is_last {
                    return;
                }
            }
        }
    });
    receiver
}

/// Copies a vDisk or a snapshot, of which `size` counts, into an image, and finishes it.
pub async fn drain_image(
    client: &Client,
    size: ByteCount,
    sink: Box<dyn Sink>,
    mut progress: impl FnMut(ByteOffset),
) -> Result<(), CopyError> {
    let (sender, written) = write_behind(sink);
    let copied = async {
        let mut at = ByteOffset(0);
        while at.0 < size.0 {
            let length = ByteCount((size.0 - at.0).min(STATUS_SIZE_BYTES));
            let status = client.block_status(ByteRange { start: at, length }).await?;
            let requests = requests(at, &status, length);
            let mut extents =
                iter(requests).map(|request| read(client, request)).buffered(REQUESTS_IN_FLIGHT);
            while let Some(extent) = extents.next().await {
                let extent = extent?;
                at = extent.end();
                // A writer that has ended says why.
                sender.send(Behind::Put(extent)).await.map_err(|_| CopyError::Thread)?;
                progress(at);
            }
        }
        sender.send(Behind::Finish).await.map_err(|_| CopyError::Thread)
    };
    match copied.await {
        Ok(()) | Err(CopyError::Thread) => {}
        Err(error) => return Err(error),
    }
    written.await.unwrap_or(Err(CopyError::Thread))
}

/// What to read and what to know to be zeros, out of a block status that covers something of `length` from `at`.
fn requests(at: ByteOffset, status: &[ovs_nbd::Extent], length: ByteCount) -> Vec<Request> {
    let (mut start, end) = (at.0, at.0 + length.0);
    let mut requests = Vec::new();
    for extent in status {
        let extent_end = start.saturating_add(extent.length.0).min(end);
        let step = if extent.zero { u64::MAX } else { READ_SIZE_BYTES };
        while start < extent_end {
            let length = ByteCount(step.min(extent_end - start));
            requests.push(Request {
                range: ByteRange { start: ByteOffset(start), length },
                is_zero: extent.zero,
            });
            start += length.0;
        }
    }
    if requests.is_empty() {
        // A server that says nothing about it: read, and so get on.
        let length = ByteCount(length.0.min(READ_SIZE_BYTES));
        requests.push(Request { range: ByteRange { start: at, length }, is_zero: false });
    }
    requests
}

#[derive(Debug, PartialEq)]
struct Request {
    range: ByteRange,
    is_zero: bool,
}

async fn read(client: &Client, request: Request) -> Result<Extent, CopyError> {
    let ByteRange { start, length } = request.range;
    if request.is_zero {
        return Ok(Extent::Zeros { start, length });
    }
    Ok(Extent::Data { start, bytes: client.read(request.range).await? })
}

enum Behind {
    Put(Extent),
    Finish,
}

/// Writes on a thread of its own. Without `Finish` the image stays unfinished.
fn write_behind(mut sink: Box<dyn Sink>) -> (mpsc::Sender<Behind>, oneshot::Receiver<Result<(), CopyError>>) {
    let (sender, mut receiver) = mpsc::channel(EXTENTS_AHEAD);
    let (result, written) = oneshot::channel();
    std::thread::spawn(move || {
        let mut write = || {
            loop {
                match receiver.blocking_recv() {
                    Some(Behind::Put(extent)) => sink.put(extent).map_err(CopyError::Sink)?,
                    Some(Behind::Finish) => return Ok(true),
                    None => return Ok(false),
                }
            }
        };
        let outcome = match write() {
            Ok(true) => sink.finish().map_err(CopyError::Sink),
            Ok(false) => Err(CopyError::Thread),
            Err(error) => Err(error),
        };
        // Nobody waits any more when the copy was interrupted.
        let _ = result.send(outcome);
    });
    (sender, written)
}

const _: () = assert!(READ_SIZE_BYTES <= EXTENT_SIZE_BYTES_MAX as u64, "a read is an extent");

#[cfg(test)]
mod tests {
    use super::*;
    use ovs_nbd::Extent as Status;

    fn check(status: &[Status], expected: &[(u64, u64, bool)]) {
        let found = requests(ByteOffset(4096), status, ByteCount(3 << 20));
        let found: Vec<_> =
            found.iter().map(|r| (r.range.start.0 - 4096, r.range.length.0, r.is_zero)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn data_is_read_in_pieces_and_zeros_are_not() {
        let mib = 1 << 20;
        let (data, hole) = (|n| Status::data(ByteCount(n)), |n| Status::hole(ByteCount(n)));
        check(&[data(2 * mib), hole(mib)], &[(0, mib, false), (mib, mib, false), (2 * mib, mib, true)]);
        check(&[hole(4096), data(mib + 1)], &[(0, 4096, true), (4096, mib, false), (4096 + mib, 1, false)]);
        // More than was asked for, less, and nothing at all.
        check(&[hole(u64::MAX)], &[(0, 3 * mib, true)]);
        check(&[data(1)], &[(0, 1, false)]);
        check(&[], &[(0, mib, false)]);
        check(&[data(0)], &[(0, mib, false)]);
    }
}
