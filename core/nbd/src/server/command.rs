//! One request: checked against the device, carried out, and put into words again.
//!
//! ```text
//! RequestHeader ──▶ check ──▶ Device call ──▶ Outcome ──▶ simple or structured reply
//! ```
//!
//! Invariant: what reaches the device lies within its size and is allowed. Which refusal has which number is decided
//! here ([`check`]) and in [`NbdError::errno`].

use super::{audience::Audience, negotiation::Agreed};
use crate::{
    Asked, Device, Extent, NbdError, ReadPiece, ReadReply, ZeroKind,
    proto::{
        numbers::{PAYLOAD_BYTES_MAX, chunk, command, command_flag},
        reply::{
            BlockStatusChunk, ChunkHeader, EXTENTS_MAX, ErrorChunk, HOLE_BYTES, HoleChunk, OFFSET_BYTES,
            SimpleReply,
        },
        request::RequestHeader,
    },
    wire::Output,
};
use bytes::Bytes;
use ovs_units::{ByteCount, ByteRange, planted};
use std::rc::Rc;

/// A request that was read whole.
pub(super) struct Job {
    pub(super) header: RequestHeader,
    /// The data of a write; empty for the rest, and for a write that was too large to be read.
    pub(super) payload: Bytes,
    /// What it counts against the bound of bytes.
    pub(super) cost: ByteCount,
}

/// A request that was carried out or refused.
pub(super) struct Finished {
    pub(super) header: RequestHeader,
    pub(super) cost: ByteCount,
    pub(super) result: Result<Outcome, NbdError>,
}

pub(super) enum Outcome {
    Done,
    Read(ReadReply),
    Extents(Vec<Extent>),
}

/// Carries out a request, whatever it is; unless nobody waits for the answer any more before it may begin.
pub(super) async fn execute<D: Device>(
    device: Rc<D>,
    job: Job,
    agreed: Rc<Agreed>,
    audience: Rc<Audience>,
) -> Finished {
    let Job { header, payload, cost } = job;
    let result = match check(&header, &*device, &agreed) {
        Ok(None) => Ok(Outcome::Done),
        Ok(Some(range)) => match admit(&*device, &header, range, &audience).await {
            Ok(()) => carry_out(&*device, &header, range, payload).await,
            Err(error) => Err(error),
        },
        Err(error) => Err(error),
    };
    Finished { header, cost, result }
}

async fn admit(
    device: &impl Device,
    header: &RequestHeader,
    range: ByteRange,
    audience: &Audience,
) -> Result<(), NbdError> {
    let asked = match header.command {
        command::READ => Asked::Read(range),
        command::WRITE => Asked::Write(range),
        command::TRIM | command::WRITE_ZEROES => Asked::Zero(range),
        _ => return Ok(()),
    };
    tokio::select! {
        biased;
        admitted = device.admit(asked) => admitted,
        () = audience.left() => Err(NbdError::Shutdown("the connection ended before the request could begin".into())),
    }
}

/// The range that the request is about, `None` if there is nothing to do, or why it is refused (proto.md, "Request
/// types", and "Error values" for the numbers: `ENOSPC` for a write past the end, `EINVAL` for the rest).
fn check(
    header: &RequestHeader,
    device: &impl Device,
    agreed: &Agreed,
) -> Result<Option<ByteRange>, NbdError> {
    let writes = matches!(header.command, command::WRITE | command::WRITE_ZEROES | command::TRIM);
    if header.command > command::BLOCK_STATUS || header.command == command::DISC {
        return Err(NbdError::Invalid(format!("command {} is not known", header.command)));
    }
    let unknown = header.flags & !header.allowed_flags();
    if unknown != 0 {
        return Err(NbdError::Invalid(format!(
            "flags {unknown:#x} do not go with command {}",
            header.command
        )));
    }
    if writes && device.read_only() {
        return Err(NbdError::NotPermitted("the export is read-only".into()));
    }
    if header.command == command::FLUSH {
        // Offset and length mean nothing (proto.md, "NBD_CMD_FLUSH": must be zero, reserved).
        return Ok(Some(ByteRange { start: header.offset, length: ByteCount(0) }));
    }
    if header.data_bytes() > ByteCount(PAYLOAD_BYTES_MAX.into()) {
        return Err(NbdError::Invalid(format!(
            "{} bytes, at most {PAYLOAD_BYTES_MAX} are allowed",
            header.length
        )));
    }
    if header.command == command::BLOCK_STATUS && (!agreed.block_status() || header.length == 0) {
        return Err(NbdError::Invalid("block status of no context or of no bytes".into()));
    }
    let size = device.size();
    match ByteRange::new(header.offset, ByteCount(header.length.into())) {
        Some(range) if range.is_within(size) && header.length == 0 => Ok(None),
        Some(range) if range.is_within(size) => Ok(Some(range)),
        _ => {
            let text =
                format!("{} bytes at {} lie past the end at {}", header.length, header.offset.0, size.0);
            match header.command {
                command::WRITE | command::WRITE_ZEROES => Err(NbdError::NoSpace(text)),
                _ => Err(NbdError::Invalid(text)),
            }
        }
    }
}

async fn carry_out(
    device: &impl Device,
    header: &RequestHeader,
    range: ByteRange,
    payload: Bytes,
) -> Result<Outcome, NbdError> {
    let fua = header.has(command_flag::FUA) && !planted("nbd: FUA is ignored");
    match header.command {
        command::READ => {
            let reply = device.read(range).await?;
            if reply.length() != range.length {
                let text = format!("the device gave {} bytes for {}", reply.length().0, range.length.0);
                return Err(NbdError::Io(text));
            }
            return Ok(Outcome::Read(reply));
        }
        command::BLOCK_STATUS => {
            let limit = if header.has(command_flag::REQ_ONE) { 1 } else { EXTENTS_MAX };
            let extents = device.block_status(range, limit).await?;
            return clipped(extents, range.length, limit).map(Outcome::Extents);
        }
        command::WRITE => device.write(range.start, payload, fua).await?,
        command::FLUSH => device.flush().await?,
        command::TRIM => device.zero(range, fua, ZeroKind::Trim).await?,
        command::WRITE_ZEROES => {
            let (no_hole, fast) = (header.has(command_flag::NO_HOLE), header.has(command_flag::FAST_ZERO));
            device.zero(range, fua, ZeroKind::Zeroes { no_hole, fast }).await?;
        }
        command::CACHE => device.cache(range).await?,
        _ => unreachable!("check refuses every other command"),
    }
    Ok(Outcome::Done)
}

/// Extents joined where they are alike, cut at the end of the range, at most `limit` of them.
fn clipped(extents: Vec<Extent>, length: ByteCount, limit: usize) -> Result<Vec<Extent>, NbdError> {
    let mut joined: Vec<Extent> = Vec::with_capacity(extents.len().min(limit));
    let mut left = length.0;
    for mut extent in extents {
        extent.length.0 = extent.length.0.min(left);
        left -= extent.length.0;
        let is_full = joined.len() == limit;
        match joined.last_mut() {
            _ if extent.length.0 == 0 => {}
            Some(last) if (last.hole, last.zero) == (extent.hole, extent.zero) => {
                last.length.0 += extent.length.0
            }
            _ if is_full => break,
            _ => joined.push(extent),
        }
    }
    if joined.is_empty() { Err(NbdError::Io("the device gave no extents".into())) } else { Ok(joined) }
}

/// Queues the reply.
pub(super) fn answer(output: &mut Output, agreed: &Agreed, finished: Finished) {
    let header = finished.header;
    match finished.result {
        Ok(Outcome::Done) if agreed.structured && header.command == command::READ => {
            chunk_header(output, &header, chunk::NONE, true, 0);
        }
        // A simple reply is allowed whatever was negotiated, for all but reads and block status, and is the shortest.
        Ok(Outcome::Done) => simple(output, &header, 0),
        Ok(Outcome::Read(reply)) if agreed.structured => structured_read(output, &header, reply),
        Ok(Outcome::Read(reply)) => {
            simple(output, &header, 0);
            put_data(output, reply);
        }
        Ok(Outcome::Extents(extents)) => block_status(output, agreed, &header, extents),
        Err(error) if agreed.structured => {
            let payload = ErrorChunk { error };
            chunk_header(output, &header, chunk::ERROR, true, payload.size_bytes());
            output.append(|tail| payload.format(tail));
        }
        Err(error) => simple(output, &header, error.errno()),
    }
}

fn simple(output: &mut Output, header: &RequestHeader, errno: u32) {
    output.append(|tail| SimpleReply { errno, cookie: header.cookie }.format(tail));
}

fn chunk_header(output: &mut Output, header: &RequestHeader, kind: u16, done: bool, length: usize) {
    let flags = if done { chunk::FLAG_DONE } else { 0 };
    let head = ChunkHeader { flags, kind, cookie: header.cookie, length: length as u32 };
    output.append(|tail| head.format(tail));
}

fn put_data(output: &mut Output, reply: ReadReply) {
    match reply {
        ReadReply::Data(data) => output.payload(data),
        ReadReply::Pieces(pieces) => {
            for piece in pieces {
                match piece {
                    ReadPiece::Data(data) => output.payload(data),
                    ReadPiece::Hole(length) => output.zeros(length.0),
                }
            }
        }
    }
}

/// One chunk per piece; a single one when the client asked not to fragment (proto.md, "NBD_CMD_FLAG_DF").
fn structured_read(output: &mut Output, header: &RequestHeader, reply: ReadReply) {
    let pieces = match reply {
        ReadReply::Pieces(pieces) if pieces.len() == 1 || !header.has(command_flag::DF) => pieces,
        whole => {
            data_chunk_header(output, header, header.offset.0, u64::from(header.length), true);
            return put_data(output, whole);
        }
    };
    let mut offset = header.offset;
    let last = pieces.iter().rposition(|piece| piece.length().0 > 0);
    for (index, piece) in pieces.into_iter().enumerate() {
        let (length, done) = (piece.length(), Some(index) == last);
        match piece {
            _ if length.0 == 0 => {}
            ReadPiece::Data(data) => {
                data_chunk_header(output, header, offset.0, length.0, done);
                output.payload(data);
            }
            ReadPiece::Hole(_) => {
                chunk_header(output, header, chunk::OFFSET_HOLE, done, HOLE_BYTES);
                output.append(|tail| HoleChunk { offset, length: length.0 as u32 }.format(tail));
            }
        }
        offset.0 += length.0;
    }
}

fn data_chunk_header(output: &mut Output, header: &RequestHeader, offset: u64, length: u64, done: bool) {
    chunk_header(output, header, chunk::OFFSET_DATA, done, OFFSET_BYTES + length as usize);
    output.append(|tail| bytes::BufMut::put_u64(tail, offset));
}

/// One chunk per selected context. A session is a context without states: one extent, all of the range.
fn block_status(output: &mut Output, agreed: &Agreed, header: &RequestHeader, extents: Vec<Extent>) {
    let whole = vec![Extent::data(ByteCount(header.length.into()))];
    let chunks = [(agreed.allocation_id, extents), (agreed.session_id, whole)];
    let mut chunks = chunks.into_iter().filter_map(|(id, extents)| Some((id?, extents))).peekable();
    while let Some((context_id, extents)) = chunks.next() {
        let payload = BlockStatusChunk { context_id, extents };
        chunk_header(output, header, chunk::BLOCK_STATUS, chunks.peek().is_none(), payload.size_bytes());
        output.append(|tail| payload.format(tail));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_clipped(extents: &[(u64, bool)], length: u64, limit: usize, expected: &[(u64, bool)]) {
        let extent = |&(length, hole): &(u64, bool)| {
            if hole { Extent::hole(ByteCount(length)) } else { Extent::data(ByteCount(length)) }
        };
        let got = clipped(extents.iter().map(extent).collect(), ByteCount(length), limit).unwrap_or_default();
        assert_eq!(got, expected.iter().map(extent).collect::<Vec<_>>());
    }

    #[test]
    fn extents_are_joined_cut_and_bounded() {
        check_clipped(&[(10, true), (10, true), (10, false)], 25, 9, &[(20, true), (5, false)]);
        check_clipped(&[(10, true), (0, false), (10, true), (10, false)], 30, 1, &[(20, true)]);
        check_clipped(&[(u64::MAX, true), (10, false)], 30, 9, &[(30, true)]);
        check_clipped(&[], 30, 9, &[]);
        check_clipped(&[(0, true)], 30, 9, &[]);
    }
}
