//! The task that owns the connection.

use super::{
    ClientError, Shared,
    connector::{Backoff, Connection, Connector, Failed},
    order::{InFlight, Message},
    replies::{Lost, Replies, Requests},
    transport::Transport,
};
use crate::{
    proto::{
        numbers::command,
        request::{Cookie, RequestHeader},
    },
    wire::Output,
};
use ovs_units::{ByteOffset, planted};
use std::{
    future::poll_fn,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    sync::mpsc::{UnboundedReceiver, error::TryRecvError},
    time::{Instant, timeout},
};
use tracing::{debug, info, warn};

/// A connection that brought an answer, or lived for so long, was a good one: patience and pauses begin anew after it.
const PROVEN_AFTER: Duration = Duration::from_secs(2);
/// For the last words.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) struct Driver {
    connector: Connector,
    inbox: UnboundedReceiver<Message>,
    shared: Arc<Shared>,
    /// Orders that are not answered, whether they were sent or not.
    requests: Requests,
    next_cookie: Cookie,
    /// No more orders will come.
    is_closing: bool,
}

/// How a connection ended.
enum Ended {
    /// All is answered and nothing more will come.
    Finished,
    Lost {
        reason: String,
        was_proven: bool,
    },
}

impl Driver {
    pub(super) fn new(
        connector: Connector,
        inbox: UnboundedReceiver<Message>,
        shared: Arc<Shared>,
    ) -> Driver {
        Driver {
            connector,
            inbox,
            shared,
            requests: Requests::new(),
            next_cookie: Cookie(1),
            is_closing: false,
        }
    }

    pub(super) async fn run(mut self, mut connection: Connection) {
        let mut backoff = Backoff::default();
        let mut deadline = None;
        let failure = loop {
            let unproven;
            let ended = self.serve(connection).await;
            self.shared.connected.store(false, Relaxed);
            match ended {
                Ended::Finished => break ClientError::Closed,
                Ended::Lost { reason, .. } if !self.connector.may_reconnect() => {
                    break ClientError::Disconnected(reason);
                }
                Ended::Lost { reason, was_proven } => {
                    info!(reason, in_flight = self.requests.len(), "NBD connection lost");
                    if was_proven {
                        backoff = Backoff::default();
                        deadline = None;
                    }
                    unproven = (!was_proven).then_some(Failed::Now(reason));
                }
            }
            let patience_ends = *deadline.get_or_insert_with(|| self.connector.deadline());
            match self.reconnect(unproven, &mut backoff, patience_ends).await {
                Ok(next) => connection = next,
                Err(failure) => break failure,
            }
            self.shared.connected(&connection, self.connector.generation());
            self.shared.reconnects.fetch_add(1, Relaxed);
        };
        self.fail(failure);
    }

    /// Connects again. After a good connection the first attempt is made at once: a restarted server is often there
    /// already. A connection that was lost before it proved to be good counts as a failed attempt.
    async fn reconnect(
        &mut self,
        unproven: Option<Failed>,
        backoff: &mut Backoff,
        deadline: Option<Instant>,
    ) -> Result<Connection, ClientError> {
        let mut failed = unproven;
        loop {
            if let Some(failed) = failed {
                debug!(?failed, "NBD connection not made");
                self.collect();
                if self.is_closing && self.requests.values().all(|request| request.order.reply.is_closed()) {
                    return Err(ClientError::Closed);
                }
                self.connector.pause(failed, backoff, deadline).await?;
            }
            match self.connector.attempt(deadline).await {
                Ok(connection) => return Ok(connection),
                Err(error) => failed = Some(error),
            }
        }
    }

    /// Takes the orders that came while there was no connection.
    fn collect(&mut self) {
        loop {
            match self.inbox.try_recv() {
                Ok(Message::Order(order)) => {
                    self.accept(InFlight::new(order));
                }
                Ok(Message::Close) => self.inbox.close(),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.is_closing = true;
                    return;
                }
            }
        }
    }

    fn accept(&mut self, request: InFlight) -> Cookie {
        let cookie = self.next_cookie;
        self.next_cookie.0 += 1;
        self.requests.insert(cookie, request);
        self.shared.in_flight.store(self.requests.len() as u64, Relaxed);
        cookie
    }

    /// Serves one connection: what is in flight first, in its order, then what comes.
    async fn serve(&mut self, connection: Connection) -> Ended {
        let Connection { mut stream, allocation_id, .. } = connection;
        let begun = Instant::now();
        let mut replies = Replies::new(allocation_id);
        let mut output = Output::default();
        let mut answered = 0_u64;
        let mut in_flight: Vec<_> = self.requests.iter_mut().collect();
        if planted("client: what is sent again comes in no order") {
            in_flight.reverse();
        }
        for (cookie, request) in in_flight {
            if request.send(*cookie, &mut output) {
                self.shared.resent_requests.fetch_add(1, Relaxed);
            }
        }
        let lost = poll_fn(|cx| {
            self.poll_orders(&mut output, cx);
            if let Poll::Ready(Err(error)) = output.poll_write(&mut stream, cx) {
                return Poll::Ready(Some(Lost::Io(error)));
            }
            loop {
                match replies.poll_next(&mut stream, &mut self.requests, cx) {
                    Poll::Ready(Ok(cookie)) => match self.answer(cookie) {
                        Ok(()) => answered += 1,
                        Err(lost) => return Poll::Ready(Some(lost)),
                    },
                    Poll::Ready(Err(lost)) => return Poll::Ready(Some(lost)),
                    Poll::Pending => break,
                }
            }
            if self.is_closing && self.requests.is_empty() { Poll::Ready(None) } else { Poll::Pending }
        })
        .await;
        let Some(lost) = lost else {
            say_goodbye(&mut stream).await;
            return Ended::Finished;
        };
        let reason = match lost {
            Lost::End => "the server closed the connection".to_owned(),
            Lost::Io(error) => error.to_string(),
            Lost::Proto(error) => {
                warn!(%error, "NBD server does not keep to the protocol");
                error.to_string()
            }
        };
        Ended::Lost { reason, was_proven: answered > 0 || begun.elapsed() >= PROVEN_AFTER }
    }

    fn poll_orders(&mut self, output: &mut Output, cx: &mut Context<'_>) {
        while !self.is_closing {
            match self.inbox.poll_recv(cx) {
                Poll::Ready(Some(Message::Order(order))) => {
                    let cookie = self.accept(InFlight::new(order));
                    if let Some(request) = self.requests.get_mut(&cookie) {
                        request.send(cookie, output);
                    }
                }
                // What was sent before is still received; then comes the end.
                Poll::Ready(Some(Message::Close)) => self.inbox.close(),
                Poll::Ready(None) => self.is_closing = true,
                Poll::Pending => return,
            }
        }
    }

    /// Passes on an answer that is complete.
    fn answer(&mut self, cookie: Cookie) -> Result<(), Lost> {
        let Some(request) = self.requests.get_mut(&cookie) else { return Ok(()) };
        // It stays in flight: a later connection carries it out.
        if request.is_shutdown() && self.connector.may_reconnect() {
            return Err(Lost::End);
        }
        let result = request.finish()?;
        if let Some(request) = self.requests.remove(&cookie) {
            self.shared.release(&request.order.command);
            // An error: the caller does not wait any more.
            let _ = request.order.reply.send(result);
        }
        self.shared.requests.fetch_add(1, Relaxed);
        self.shared.in_flight.store(self.requests.len() as u64, Relaxed);
        Ok(())
    }

    /// The end: whatever is asked, or was, fails.
    fn fail(mut self, failure: ClientError) {
        if failure != ClientError::Closed {
            warn!(error = %failure, in_flight = self.requests.len(), "NBD client ends");
        }
        // An error: nobody sets it but this task, once.
        let _ = self.shared.failure.set(failure.clone());
        self.inbox.close();
        self.collect();
        self.shared.slots.close();
        self.shared.payload.close();
        for (_, request) in std::mem::take(&mut self.requests) {
            let _ = request.order.reply.send(Err(failure.clone()));
        }
        self.shared.in_flight.store(0, Relaxed);
        self.shared.ended.cancel();
    }
}

/// proto.md, "NBD_CMD_DISC": no reply.
async fn say_goodbye(stream: &mut Transport) {
    let mut output = Output::default();
    let header = RequestHeader {
        flags: 0,
        command: command::DISC,
        cookie: Cookie(0),
        offset: ByteOffset(0),
        length: 0,
    };
    output.append(|tail| header.format(tail));
    // Whether it arrives or not: all is answered, the end of the connection says the same.
    let _ = timeout(GOODBYE_TIMEOUT, poll_fn(|cx| output.poll_write(stream, cx))).await;
}
