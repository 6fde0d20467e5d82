//! A double of `Core`: every operation answers with a `conflict` whose members say what it was called with.

use super::*;
use futures_util::StreamExt;
use std::fmt::Debug;
use std::sync::Mutex;
use tokio::sync::watch;

/// What stands behind the door in tests.
#[derive(Debug, Default)]
pub(super) struct Double {
    /// Changes that began.
    pub begun: AtomicU64,
    /// Changes that ran to their end.
    pub finished: AtomicU64,
    /// None ends while this is so.
    pub holds_changes: watch::Sender<bool>,
    /// Events for the next stream.
    pub events: Mutex<Vec<Event>>,
}

fn arrived(operation: &str, arguments: &[(&str, &dyn Debug)], context: &RequestContext) -> Problem {
    let mut problem = Problem::new(ProblemKind::Conflict, "called").with("operation", operation);
    for (name, value) in arguments {
        problem = problem.with(name, format!("{value:?}"));
    }
    assert_eq!(context.operation, operation);
    problem.with("context", format!("{context:?}"))
}

macro_rules! double_rows {
    (
        served { $(
            $(#[doc = $doc:literal])+
            $id:ident: $method:ident $path:literal $(path($($param:ident: $Param:ty),+))? $(query($Query:ty))?
                $(body($Body:ty))? -> $Reply:ty, may [$($kind:ident),*];
        )* }
        later { $($later:tt)* }
        streams { $($streams:tt)* }
    ) => {
        impl Double {
            $(async fn $id(
                &self, $($($param: $Param,)+)? $(query: $Query,)? $(body: $Body,)? context: &RequestContext,
            ) -> Result<$Reply, Problem> {
                let said = arrived(stringify!($id), &[
                    $($((stringify!($param), &$param)),+ ,)?
                    $(("query", { let query: &$Query = &query; query }),)?
                    $(("body", { let body: &$Body = &body; body }),)?
                ], context);
                Err(self.instead(stringify!($id)).await.unwrap_or(said))
            })*
        }
    };
}

for_each_operation!(double_rows);
serve_operations!(Double);

impl Double {
    /// What some operations do instead of saying what they were called with.
    async fn instead(&self, operation: &str) -> Option<Problem> {
        match operation {
            "list_hosts" => panic!("a planted defect"),
            "get_status" => Some(Problem::new(ProblemKind::Unavailable, "starting").with("retry_after_s", 1)),
            "set_template" => {
                self.begun.fetch_add(1, Ordering::SeqCst);
                drop(self.holds_changes.subscribe().wait_for(|holds| !holds).await);
                self.finished.fetch_add(1, Ordering::SeqCst);
                None
            }
            _ => None,
        }
    }

    async fn stream_events(&self, context: &RequestContext) -> Result<EventStream, Problem> {
        if context.last_event_id == Some(EventId(1)) {
            return Err(Problem::new(ProblemKind::Gone, "event 1 is no longer kept"));
        }
        let events = std::mem::take(&mut *self.events.lock().unwrap());
        let events = futures_util::stream::iter(events).chain(futures_util::stream::pending()).boxed();
        Ok(EventStream { newest: EventId(40), at: Timestamp::from_unix_ms(0), events })
    }

    async fn get_metrics(&self, _context: &RequestContext) -> Result<MetricsText, Problem> {
        Ok(MetricsText("# TYPE ovs_up gauge\novs_up 1\n".to_owned()))
    }
}

/// An event for a stream.
pub(super) fn event(id: u64, kind: EventKind) -> Event {
    Event {
        id: EventId(id),
        kind,
        subject: None,
        revision: None,
        vpool: None,
        vdisk: None,
        name: None,
        previous_name: None,
        size_bytes: None,
        detail: Some("line one\nline two".to_owned()),
        at: Timestamp::from_unix_ms(0),
    }
}
