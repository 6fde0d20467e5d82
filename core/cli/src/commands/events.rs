//! `ovs events`

use super::Context;
use crate::{
    args::{EventsArgs, OutputFormat},
    failure::Failure,
    output::{self, Output, one_line, time},
};
use ovs_api::{ApiError, Event, EventId, EventKind, ProblemKind};
use std::time::Duration;

/// How long to wait before the stream of an ovsd that went away is begun anew.
const RESUME_DELAY: Duration = Duration::from_millis(500);

pub(super) async fn run(context: &Context, args: EventsArgs) -> Result<(), Failure> {
    let mut since = args.since.map(EventId);
    let mut has_begun = false;
    loop {
        match stream(context, &mut since, args.follow).await {
            Ok(()) if !args.follow => return Ok(()),
            // ovsd stops, or this reader was too slow.
            Ok(()) => {}
            Err(Ended::Here(failure)) => return Err(failure),
            Err(Ended::There(error)) if !args.follow || !is_passing(&error, has_begun) => {
                return Err(error.into());
            }
            Err(Ended::There(_)) => {}
        }
        has_begun = true;
        tokio::time::sleep(RESUME_DELAY).await;
    }
}

/// Who ended a stream.
enum Ended {
    There(ApiError),
    Here(Failure),
}

/// What a restart of ovsd looks like; before the first event it is an ovsd that does not run.
fn is_passing(error: &ApiError, has_begun: bool) -> bool {
    match error {
        ApiError::Unreachable { .. } => has_begun,
        ApiError::Broken { .. } | ApiError::TimedOut { .. } => true,
        _ => error.is(ProblemKind::Unavailable) && has_begun,
    }
}

/// One connection's events; without `follow`, up to the newest that there was when it began.
async fn stream(context: &Context, since: &mut Option<EventId>, follow: bool) -> Result<(), Ended> {
    let mut events = context.client.events(*since).await.map_err(Ended::There)?;
    let mut newest = None;
    while let Some(event) = events.next().await.map_err(Ended::There)? {
        if event.kind == EventKind::StreamStarted {
            newest = Some(event.id);
            // From here on a new connection misses nothing.
            since.get_or_insert(event.id);
        } else {
            print(&context.output, &event).map_err(Ended::Here)?;
            *since = Some(event.id);
        }
        if !follow && newest.is_some_and(|newest| since.is_none_or(|since| since >= newest)) {
            break;
        }
    }
    Ok(())
}

fn print(output: &Output, event: &Event) -> Result<(), Failure> {
    match output.format {
        OutputFormat::Json => output.json_line(event),
        OutputFormat::Table => output::print(&format!("{}\n", one_line(&line(event, output)))),
    }
}

fn line(event: &Event, output: &Output) -> String {
    let subject = match (&event.vpool, &event.name) {
        (Some(vpool), Some(name)) if vpool.as_str() != name => format!(" {vpool}/{name}"),
        (_, Some(name)) => format!(" {name}"),
        (Some(vpool), None) => format!(" {vpool}"),
        (None, None) => event.subject.map(|subject| format!(" {subject}")).unwrap_or_default(),
    };
    let previous = event.previous_name.as_ref().map(|name| format!(", was {name}")).unwrap_or_default();
    let size = event.size_bytes.map(|bytes| format!(", {}", output::size(bytes))).unwrap_or_default();
    let detail = event.detail.as_ref().map(|detail| format!(": {detail}")).unwrap_or_default();
    let at = time(&event.at, &output.zone);
    format!("{at}  {:>6}  {}{subject}{previous}{size}{detail}", event.id.0, event.kind.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(change: serde_json::Value, expected: &str) {
        let mut document = json!({"id": 42, "at": "2026-11-20T10:00:00Z"});
        document.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let event: Event = serde_json::from_value(document).unwrap();
        assert_eq!(line(&event, &Output::for_test()), format!("2026-11-20 10:00:00      42  {expected}"));
    }

    #[test]
    fn events_as_people_see_them() {
        check(json!({"kind": "vdisk.created", "vpool": "p", "name": "x"}), "vdisk.created p/x");
        check(
            json!({"kind": "vdisk.renamed", "vpool": "p", "name": "x", "previous_name": "y"}),
            "vdisk.renamed p/x, was y",
        );
        check(
            json!({"kind": "vdisk.resized", "vpool": "p", "name": "x", "size_bytes": 4096}),
            "vdisk.resized p/x, 4KiB",
        );
        check(json!({"kind": "vpool.state", "vpool": "p", "name": "p", "detail": "ok"}), "vpool.state p: ok");
        check(json!({"kind": "vdisk.melted"}), "other");
    }

    #[test]
    fn a_restart_is_waited_for_but_an_absence_is_not() {
        let unreachable = ApiError::Unreachable { place: "/s".into(), reason: "gone".into() };
        assert!(!is_passing(&unreachable, false) && is_passing(&unreachable, true));
        let gone: ApiError = ovs_api::Problem::new(ProblemKind::Gone, "x").into();
        assert!(!is_passing(&gone, true));
    }
}
