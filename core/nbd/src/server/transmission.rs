//! Transmission: requests in, device calls, replies out, all in one task.
//!
//! ```text
//! each wake-up:  take in all requests at hand ──▶ poll what runs ──▶ queue the replies ──▶ one writev
//! ```
//!
//! Invariants:
//! * A request that runs is polled to its end, whatever happens to the connection: [`transmit`] returns only then.
//! * Requests are first polled in the order in which they arrived.
//! * Nothing that the device held back begins once the client is known to be gone.
//! * Running or unanswered requests, and their bytes, stay within the bounds; past them the socket is not read. So a
//!   client that does not read its replies costs the bound and nothing else.

use super::{
    ServerOptions,
    audience::Audience,
    command::{Finished, Job, answer, execute},
    negotiation::Agreed,
};
use crate::{
    Device,
    proto::{
        ProtoError,
        numbers::{PAYLOAD_BYTES_MAX, command},
        request::{REQUEST_HEADER_BYTES, RequestHeader},
    },
    wire::{Input, Output, Partial},
};
use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use ovs_units::ByteCount;
use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, Sleep},
};

/// A write's payload up to here is copied out of the input buffer; a larger one is read into its own memory.
const SMALL_PAYLOAD_BYTES_MAX: usize = 32 << 10;
/// What a request without data counts: an answer of extents is the largest of them.
const COST_BYTES_MIN: u64 = 512;
/// For how long a client may take no byte of its last replies.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a connection ends.
#[derive(Debug)]
pub(super) enum Ending {
    /// The client said goodbye.
    ClientLeft,
    /// The client closed its end without a word, most likely because it died.
    ClientGone,
    /// The server is stopping.
    Stopping,
    /// The device forces its clients off.
    DeviceClosed,
    /// A newer generation of the session is waiting.
    Superseded,
    /// The client took none of its replies for too long.
    ReplyStall,
    /// The socket failed.
    Socket(io::Error),
    /// The client does not speak the protocol.
    Protocol(ProtoError),
}

impl Ending {
    /// True when there is a client that may still want its replies.
    fn answers(&self) -> bool {
        matches!(self, Ending::ClientLeft | Ending::ClientGone | Ending::Stopping | Ending::DeviceClosed)
    }

    /// True when what could not begin yet may begin no more.
    fn forgoes(&self) -> bool {
        !matches!(self, Ending::ClientLeft | Ending::Stopping)
    }
}

/// Serves requests until `ending` resolves or the connection ends otherwise; returns when none runs any more. `count` is
/// told how many requests were answered, and how many of them with an error.
pub(super) async fn transmit<S, D>(
    stream: &mut S,
    device: &Rc<D>,
    agreed: Rc<Agreed>,
    options: &ServerOptions,
    ending: impl Future<Output = Ending>,
    count: impl Fn(u64, u64),
) -> Ending
where
    S: AsyncRead + AsyncWrite + Unpin,
    D: Device,
{
    let mut line = Line::new(stream, options);
    let mut running = FuturesUnordered::new();
    let audience = Rc::<Audience>::default();
    // In a set of its own it is polled only when it was woken, not for every request.
    let mut ending = FuturesUnordered::from_iter([ending]);
    let mut ended: Option<Ending> = None;
    poll_fn(|cx| {
        loop {
            // Also of one that said goodbye: what is held back may be for long, and somebody else wait for the end.
            if matches!(ended, None | Some(Ending::ClientLeft))
                && let Poll::Ready(Some(reason)) = ending.poll_next_unpin(cx)
            {
                ended = Some(reason);
            }
            while ended.is_none() {
                match line.poll_request(cx) {
                    Poll::Ready(Ok(job)) => {
                        let (device, agreed) = (Rc::clone(device), Rc::clone(&agreed));
                        running.push(execute(device, job, agreed, Rc::clone(&audience)));
                    }
                    Poll::Ready(Err(reason)) => ended = Some(reason),
                    Poll::Pending => break,
                }
            }
            if ended.as_ref().is_some_and(Ending::forgoes) {
                audience.leave();
            }
            match &ended {
                Some(reason) if reason.answers() => line.stall.hurry(),
                Some(_) => line.hang_up(cx),
                None => {}
            }
            let (mut requests, mut errors) = (0, 0);
            while let Poll::Ready(Some(finished)) = running.poll_next_unpin(cx) {
                requests += 1;
                errors += u64::from(finished.result.is_err());
                line.answer(&agreed, finished);
            }
            if requests > 0 {
                count(requests, errors);
            }
            let freed = line.write(cx).unwrap_or_else(|reason| {
                line.hang_up(cx);
                audience.leave();
                // A client that left may well not wait for its replies.
                ended.get_or_insert(reason);
                false
            });
            if running.is_empty()
                && line.output.is_empty()
                && let Some(reason) = ended.take()
            {
                return Poll::Ready(reason);
            }
            if ended.is_some() {
                return Poll::Pending;
            }
            // What the bounds kept out may fit now, and no wake-up would tell.
            if !(line.blocked && freed) {
                return Poll::Pending;
            }
        }
    })
    .await
}

/// The socket with what is half read, half written, and how much is in flight.
struct Line<'a, S> {
    stream: &'a mut S,
    input: Input,
    receiving: Receiving,
    output: Output,
    hung_up: bool,
    /// The socket has requests that the bounds kept from being read.
    blocked: bool,
    in_flight: Load,
    load_max: Load,
    /// Answers that are not written yet: where each ends in the output, and its bytes.
    unwritten: VecDeque<(u64, ByteCount)>,
    stall: Stall,
}

#[derive(Clone, Copy)]
struct Load {
    requests: usize,
    bytes: u64,
}

/// What the next bytes of the socket are.
enum Receiving {
    Header,
    Payload {
        header: RequestHeader,
        cost: ByteCount,
        partial: Partial,
    },
    /// The payload of a write that is refused for its size.
    TooLarge {
        header: RequestHeader,
        cost: ByteCount,
        left: u64,
    },
}

/// What the bytes at hand are good for.
enum AtHand {
    Whole(Job),
    /// A large payload, to be read on.
    Begun,
    TooLittle,
    /// A request that has to wait until others are answered.
    OverBound,
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin> Line<'a, S> {
    fn new(stream: &'a mut S, options: &ServerOptions) -> Line<'a, S> {
        Line {
            stream,
            input: Input::new(),
            receiving: Receiving::Header,
            output: Output::default(),
            hung_up: false,
            blocked: false,
            in_flight: Load { requests: 0, bytes: 0 },
            load_max: Load {
                requests: options.requests_in_flight_max.max(1),
                bytes: options.payload_in_flight_max.0,
            },
            unwritten: VecDeque::new(),
            stall: Stall { timeout: options.reply_timeout, armed: None },
        }
    }

    /// The next request, when it is there whole and the bounds allow it.
    fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<Result<Job, Ending>> {
        loop {
            match &mut self.receiving {
                Receiving::Header => match self.next_at_hand()? {
                    AtHand::Whole(job) => return Poll::Ready(Ok(job)),
                    AtHand::Begun => {}
                    AtHand::OverBound => return Poll::Pending,
                    AtHand::TooLittle => {
                        if ready!(self.input.poll_fill(self.stream, cx)).map_err(Ending::Socket)? == 0 {
                            return Poll::Ready(Err(Ending::ClientGone));
                        }
                    }
                },
                Receiving::Payload { header, cost, partial } => {
                    let (header, cost) = (*header, *cost);
                    let payload = ready!(partial.poll_complete(self.stream, cx)).map_err(Ending::Socket)?;
                    self.receiving = Receiving::Header;
                    return Poll::Ready(Ok(Job { header, payload, cost }));
                }
                Receiving::TooLarge { header, cost, left } => {
                    *left -= self.input.take_up_to(*left as usize).len() as u64;
                    if *left == 0 {
                        let (header, cost) = (*header, *cost);
                        self.receiving = Receiving::Header;
                        return Poll::Ready(Ok(Job { header, payload: Bytes::new(), cost }));
                    }
                    if ready!(self.input.poll_fill(self.stream, cx)).map_err(Ending::Socket)? == 0 {
                        return Poll::Ready(Err(Ending::ClientGone));
                    }
                }
            }
        }
    }

    /// Goes as far as the bytes at hand and the bounds allow.
    fn next_at_hand(&mut self) -> Result<AtHand, Ending> {
        let Some(bytes) = self.input.peek(REQUEST_HEADER_BYTES) else { return Ok(AtHand::TooLittle) };
        let header = RequestHeader::parse(bytes).map_err(Ending::Protocol)?;
        if header.command == command::DISC {
            return Err(Ending::ClientLeft);
        }
        let payload = header.payload_bytes() as usize;
        let is_small = payload <= SMALL_PAYLOAD_BYTES_MAX;
        if is_small && self.input.available().len() < REQUEST_HEADER_BYTES + payload {
            return Ok(AtHand::TooLittle);
        }
        // One that is refused for its size costs no memory.
        let data = if header.data_bytes().0 > PAYLOAD_BYTES_MAX.into() { 0 } else { header.data_bytes().0 };
        let cost = ByteCount(data.max(COST_BYTES_MIN));
        if !self.admit(cost) {
            return Ok(AtHand::OverBound);
        }
        self.input.consume(REQUEST_HEADER_BYTES);
        if is_small {
            let payload = Bytes::copy_from_slice(self.input.take_up_to(payload));
            return Ok(AtHand::Whole(Job { header, payload, cost }));
        }
        self.receiving = if payload > PAYLOAD_BYTES_MAX as usize {
            Receiving::TooLarge { header, cost, left: payload as u64 }
        } else {
            Receiving::Payload { header, cost, partial: Partial::begin(payload, &mut self.input) }
        };
        Ok(AtHand::Begun)
    }

    /// Counts one more request in, unless that is over a bound. A single one is always let in.
    fn admit(&mut self, cost: ByteCount) -> bool {
        let Load { requests, bytes } = self.in_flight;
        self.blocked = requests > 0
            && (requests >= self.load_max.requests || bytes.saturating_add(cost.0) > self.load_max.bytes);
        if !self.blocked {
            self.in_flight = Load { requests: requests + 1, bytes: bytes + cost.0 };
        }
        !self.blocked
    }

    fn answer(&mut self, agreed: &Agreed, finished: Finished) {
        let cost = finished.cost;
        if !self.hung_up {
            answer(&mut self.output, agreed, finished);
        }
        self.unwritten.push_back((self.output.queued(), cost));
    }

    /// Writes what the socket takes, and counts out the requests whose answers have left: true if there are any.
    fn write(&mut self, cx: &mut Context<'_>) -> Result<bool, Ending> {
        let result = match self.output.poll_write(self.stream, cx) {
            Poll::Ready(Ok(())) => {
                self.stall.armed = None;
                Ok(())
            }
            Poll::Ready(Err(error)) => Err(Ending::Socket(error)),
            Poll::Pending => match self.stall.poll(self.output.written(), cx) {
                Poll::Ready(()) => Err(Ending::ReplyStall),
                Poll::Pending => Ok(()),
            },
        };
        let mut freed = false;
        while let Some((end, cost)) = self.unwritten.front() {
            if *end > self.output.written() {
                break;
            }
            freed = true;
            self.in_flight.requests -= 1;
            self.in_flight.bytes -= cost.0;
            self.unwritten.pop_front();
        }
        result.map(|()| freed)
    }

    /// No more replies: what runs goes on, its answers are dropped, the client sees the end at once.
    fn hang_up(&mut self, cx: &mut Context<'_>) {
        if !self.hung_up {
            self.hung_up = true;
            self.output.clear();
            // A socket that cannot be shut down is broken already, and is closed when what runs has ended.
            let _ = Pin::new(&mut *self.stream).poll_shutdown(cx);
        }
    }
}

/// Notices that a client takes none of its replies.
struct Stall {
    timeout: Duration,
    /// The deadline, and how much was written when it was set.
    armed: Option<(Pin<Box<Sleep>>, u64)>,
}

impl Stall {
    /// At the end of a connection there is less patience.
    fn hurry(&mut self) {
        if self.timeout > FAREWELL_TIMEOUT {
            self.timeout = FAREWELL_TIMEOUT;
            self.armed = None;
        }
    }

    /// Ready when nothing was written for the whole time. To be called while the socket takes no more.
    fn poll(&mut self, written: u64, cx: &mut Context<'_>) -> Poll<()> {
        let timeout = self.timeout;
        let (sleep, before) =
            self.armed.get_or_insert_with(|| (Box::pin(tokio::time::sleep(timeout)), written));
        if *before != written {
            *before = written;
            sleep.as_mut().reset(Instant::now() + timeout);
        }
        sleep.as_mut().poll(cx)
    }
}
