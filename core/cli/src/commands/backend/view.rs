//! Backends and presets as people see them.

use crate::{
    commands::word,
    output::{Align, Fields, Output, Table, duration, size, time, yes_no},
};
use ovs_api::{
    Backend, BackendPlan, BackendUpkeep, DriveDuty, Policy, Preset, ProbeResult, SafetyShare, UpkeepPhase,
    Verification,
};

pub(super) fn table(backends: &[Backend]) -> Table {
    let columns = [
        ("BACKEND", Align::Left),
        ("TYPE", Align::Left),
        ("PLACE", Align::Left),
        ("NODE", Align::Left),
        ("SITE", Align::Left),
        ("USED BY", Align::Left),
        ("TOTAL", Align::Right),
        ("FREE", Align::Right),
    ];
    Table::new(columns).rows(backends, |backend| {
        let drives: Vec<String> = backend.drives.iter().map(|drive| drive.name.to_string()).collect();
        let user = match (&backend.vpool, &backend.drive_of) {
            (Some(vpool), _) => format!("vPool {vpool}"),
            (None, Some(composite)) => format!("backend {composite}"),
            (None, None) => "-".into(),
        };
        [
            backend.name.to_string(),
            word(backend.kind),
            if drives.is_empty() { backend.path.clone() } else { drives.join(",") },
            backend.node.clone(),
            if backend.site.is_empty() { "-".into() } else { backend.site.clone() },
            user,
            backend.total_bytes.map_or_else(|| "-".into(), size),
            backend.free_bytes.map_or_else(|| "-".into(), size),
        ]
    })
}

pub(super) fn view(backend: &Backend, output: &Output) -> String {
    let drives = backend.drives.iter().map(|drive| {
        let site = if drive.site.is_empty() { String::new() } else { format!(", site {}", drive.site) };
        let room = drive.total_bytes.map(|bytes| format!(", {}", size(bytes))).unwrap_or_default();
        let state = match (drive.duty, &drive.problem) {
            (DriveDuty::Lost, problem) => {
                format!(
                    ": LOST{}",
                    problem.as_ref().map_or_else(String::new, |problem| format!(": {problem}"))
                )
            }
            (_, Some(problem)) => format!(": AWAY: {problem}"),
            (_, None) => String::new(),
        };
        format!(
            "{} ({}, {}, node {}{site}, weight {}{room}){state}",
            drive.name,
            word(drive.duty),
            word(drive.kind),
            drive.node,
            drive.weight
        )
    });
    let fields = Fields::new()
        .with("backend", &backend.name)
        .with("UUID", backend.uuid)
        .with("type", word(backend.kind))
        .with_some("path", Some(&backend.path).filter(|path| !path.is_empty()))
        .with_each("hosts", backend.nodes.iter().cloned())
        .with_some("node", Some(&backend.node).filter(|node| !node.is_empty()))
        .with_some("site", Some(&backend.site).filter(|site| !site.is_empty()))
        .with_some("weight", Some(backend.weight).filter(|weight| *weight != 1))
        .with_some("vPool", backend.vpool.as_ref())
        .with_some("drive of", backend.drive_of.as_ref())
        .with_each("drives", drives)
        .with_each("safety", backend.upkeep.iter().flat_map(safety_lines))
        .with_some("upkeep", backend.upkeep.as_ref().map(upkeep_line))
        .with_some("upkeep waits", backend.upkeep.as_ref().and_then(|upkeep| upkeep.problem.as_ref()))
        .with_some("silent", backend.upkeep.as_ref().map(silent).filter(|names| !names.is_empty()))
        .with_some(
            "looked at",
            backend
                .upkeep
                .as_ref()
                .and_then(|upkeep| upkeep.surveyed_at.as_ref())
                .map(|at| time(at, &output.zone)),
        )
        .with_some("verified", backend.upkeep.as_ref().and_then(|upkeep| verified(upkeep, output)))
        .with_some("verifying", backend.upkeep.as_ref().and_then(verifying))
        .with_some("preset", backend.preset.as_ref())
        .with_some("unreadable", backend.problem.as_ref())
        .with_each("tried", backend.probe.iter().flat_map(probe_lines))
        .with_some("bandwidth", backend.bytes_per_s.map(|bytes| format!("at most {}/s", size(bytes))))
        .with_some("concurrency", backend.requests_max.map(|requests| format!("at most {requests} requests")))
        .with_some("total", backend.total_bytes.map(size))
        .with_some("free", backend.free_bytes.map(size))
        .with("created", time(&backend.created_at, &output.zone));
    match &backend.plan {
        Some(plan) => format!("{fields}\n{}", plan_view(plan)),
        None => fields.to_string(),
    }
}

/// How many more losses what is stored survives.
fn safety_lines(upkeep: &BackendUpkeep) -> Vec<String> {
    let line = |share: &SafetyShare| {
        let SafetyShare { losses, objects, bytes, percent } = share;
        let more = if *losses == 1 { "1 more loss".to_owned() } else { format!("{losses} more losses") };
        format!("{percent}% survive {more} ({objects} objects, {})", size(*bytes))
    };
    let mut lines: Vec<String> = upkeep.safety.iter().map(line).collect();
    if upkeep.unreadable > 0 {
        lines.insert(0, format!("{} objects CANNOT BE READ NOW", upkeep.unreadable));
    }
    lines
}

fn upkeep_line(upkeep: &BackendUpkeep) -> String {
    let remaining = upkeep
        .remaining_seconds
        .map(|seconds| format!(", about {} left", duration(seconds)))
        .unwrap_or_default();
    let doing = match upkeep.phase {
        UpkeepPhase::Idle => "idle",
        UpkeepPhase::Looking => "looking what is on the drives",
        UpkeepPhase::Mending => "mending",
    };
    match (upkeep.phase, upkeep.to_mend) {
        (UpkeepPhase::Idle | UpkeepPhase::Looking, 0) => format!("{doing}{remaining}"),
        (_, to_mend) => format!("{doing}: {} objects done, {to_mend} to go{remaining}", upkeep.mended),
    }
}

/// When all was last read, and what came of it.
fn verified(upkeep: &BackendUpkeep, output: &Output) -> Option<String> {
    match &upkeep.verified {
        Some(last) => {
            let ended = last.ended_at.as_ref().map(|at| time(at, &output.zone)).unwrap_or_default();
            Some(format!("{ended}: {} objects, {}, {}", last.objects, size(last.bytes), found(last)))
        }
        // One that does not go on either: nobody has looked yet.
        None => upkeep.verifying.as_ref().map(|_| "not yet".to_owned()),
    }
}

/// How far the next time is.
fn verifying(upkeep: &BackendUpkeep) -> Option<String> {
    let present = upkeep.verifying.as_ref()?;
    let remaining = present.remaining_seconds.map(|seconds| format!(", about {} left", duration(seconds)));
    Some(format!("{}% read{}: {}", present.percent, remaining.unwrap_or_default(), found(present)))
}

fn found(verification: &Verification) -> String {
    let bad = match verification.bad_fragments {
        0 => "nothing bad".to_owned(),
        1 => "1 BAD FRAGMENT".to_owned(),
        bad => format!("{bad} BAD FRAGMENTS"),
    };
    if verification.missed.is_empty() {
        return bad;
    }
    let missed: Vec<String> = verification.missed.iter().map(ToString::to_string).collect();
    format!("{bad}; not all read of {}", missed.join(", "))
}

fn silent(upkeep: &BackendUpkeep) -> String {
    upkeep.silent.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn probe_lines(probe: &ProbeResult) -> Vec<String> {
    let does = |does: bool, what: &str| format!("{}{what}", if does { "" } else { "NOT: " });
    vec![
        does(probe.reads_after_put, "reads what was put, at once"),
        does(probe.reads_ranges, "reads ranges exactly"),
        does(probe.lists_after_put, "lists what was put, at once"),
        does(probe.lists_in_order, "lists in order"),
        does(probe.deletes, "deletes"),
        does(probe.lists_after_delete, "lists no more what was deleted, at once"),
        format!("puts of what must not be there yet: {}", probe.put_if_absent.replace('_', " ")),
        format!("a put took {} ms, a read {} ms", probe.put_ms, probe.get_ms),
    ]
}

fn counted(number: u32, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// What a composite comes to.
pub(super) fn plan_view(plan: &BackendPlan) -> String {
    let policy = plan.policy.map_or_else(|| "none is satisfied".into(), |policy| policy.to_string());
    let fields = Fields::new()
        .with(
            "drives",
            format!(
                "{} on {}{}",
                plan.drive_count,
                counted(plan.node_count, "node"),
                if plan.site_count > 1 { format!(" in {} sites", plan.site_count) } else { String::new() },
            ),
        )
        .with("policy", policy)
        .with_some("raw", plan.raw_bytes.map(size))
        .with_some("usable", plan.usable_bytes.map(size))
        .with(
            "may be away",
            format!(
                "{}, {}: vDisks are opened, read and written on",
                counted(plan.drives_away_max, "drive"),
                counted(plan.nodes_away_max, "node"),
            ),
        )
        .with_each("remarks", plan.remarks.iter().cloned());
    let columns = [
        ("POLICY", Align::Left),
        ("SATISFIED", Align::Left),
        ("FRAGMENTS", Align::Right),
        ("STORED", Align::Right),
        ("DRIVES LOST", Align::Right),
        ("AFTER AN ACK", Align::Right),
        ("NODES LOST", Align::Right),
        ("SITES LOST", Align::Right),
    ];
    let policies = Table::new(columns).rows(&plan.policies, |of| {
        let figure = |figure: String| if of.is_satisfied { figure } else { "-".into() };
        [
            of.policy.to_string(),
            yes_no(of.is_satisfied),
            of.fragment_count.to_string(),
            figure(format!("{}%", of.stored_percent)),
            figure(of.drives_lost_max.to_string()),
            figure(of.drives_lost_at_once_max.to_string()),
            figure(of.nodes_lost_max.to_string()),
            figure(of.sites_lost_max.to_string()),
        ]
    });
    format!("{fields}\n{policies}")
}

pub(super) fn preset_table(presets: &[Preset]) -> Table {
    let columns = [
        ("PRESET", Align::Left),
        ("DEFAULT", Align::Left),
        ("COMPRESSION", Align::Left),
        ("ENCRYPTION", Align::Left),
        ("FRAGMENT", Align::Right),
        ("POLICIES (k,m,c,x)", Align::Left),
    ];
    Table::new(columns).rows(presets, |preset| {
        [
            preset.name.to_string(),
            yes_no(preset.is_default),
            word(preset.compression),
            word(preset.encryption),
            size(preset.fragment_size_bytes),
            preset.policies.iter().map(Policy::to_string).collect::<Vec<_>>().join(" "),
        ]
    })
}

fn data_key(number: u32, waiting: Option<u32>) -> String {
    match waiting {
        Some(next) => format!("{number}, and {next} when every drive has it"),
        None => number.to_string(),
    }
}

pub(super) fn preset_view(preset: &Preset) -> String {
    Fields::new()
        .with("preset", &preset.name)
        .with("UUID", preset.uuid)
        .with("default", yes_no(preset.is_default))
        .with_each("policies", preset.policies.iter().map(|policy| format!("{policy} (k,m,c,x)")))
        .with("compression", word(preset.compression))
        .with("encryption", word(preset.encryption))
        .with_some("key", preset.key.as_ref())
        .with_some("data key", preset.data_key.map(|number| data_key(number, preset.data_key_waiting)))
        .with_each(
            "not there yet",
            preset.drives_behind.iter().map(|drive| format!("drive {drive}: keep the old key")),
        )
        .with("fragment", size(preset.fragment_size_bytes))
        .with_each("backends", preset.backends.iter().map(ToString::to_string))
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_as_people_see_them() {
        let backend: Backend = serde_json::from_value(serde_json::json!({
            "uuid": uuid::Uuid::nil(), "name": "b1", "revision": 1, "type": "dir", "path": "/srv/b1", "nodes": ["h1", "h2"], "node": "h1",
            "free_bytes": 1073741824, "created_at": "2026-11-20T10:00:00Z",
        }))
        .unwrap();
        let expected = "\
BACKEND  TYPE  PLACE    NODE  SITE  USED BY  TOTAL  FREE
b1       dir   /srv/b1  h1    -     -            -  1GiB
";
        assert_eq!(table(std::slice::from_ref(&backend)).to_string(), expected);
        let expected = "\
backend  b1
UUID     00000000-0000-0000-0000-000000000000
type     dir
path     /srv/b1
hosts    h1
         h2
node     h1
free     1GiB
created  2026-11-20 10:00:00
";
        assert_eq!(view(&backend, &Output::for_test()), expected);
    }

    #[test]
    fn a_composite_says_how_safe_it_is_and_what_is_mended() {
        let drive = |name: &str, duty: &str, problem: Option<&str>| {
            serde_json::json!({
                "uuid": uuid::Uuid::nil(), "name": name, "type": "dir", "node": "n", "site": "", "weight": 1, "duty": duty,
                "problem": problem,
            })
        };
        let backend: Backend = serde_json::from_value(serde_json::json!({
            "uuid": uuid::Uuid::nil(), "name": "all", "revision": 3, "type": "composite", "nodes": ["h1"],
            "drives": [drive("a", "serving", None), drive("b", "leaving", Some("gone")), drive("c", "lost", None)],
            "upkeep": {
                "phase": "mending", "objects": 10, "bytes": 3145728, "unreadable": 1, "to_mend": 3, "mended": 4,
                "safety": [{"losses": 0, "objects": 3, "bytes": 1048576, "percent": 33},
                           {"losses": 1, "objects": 6, "bytes": 2097152, "percent": 66}],
                "remaining_seconds": 125, "surveyed_at": "2026-11-20T10:01:00Z", "silent": ["b"], "problem": "no room",
                "verified": {"began_at": "2026-11-12T10:00:00Z", "ended_at": "2026-11-19T10:00:00Z", "objects": 9, "bytes": 1048576,
                             "percent": 100, "bad_fragments": 2, "missed": ["a", "b"]},
                "verifying": {"began_at": "2026-11-19T10:00:00Z", "objects": 1, "bytes": 1024, "percent": 17, "bad_fragments": 0,
                              "remaining_seconds": 446400},
            },
            "created_at": "2026-11-20T10:00:00Z",
        }))
        .unwrap();
        let expected = "\
backend       all
UUID          00000000-0000-0000-0000-000000000000
type          composite
hosts         h1
drives        a (serving, dir, node n, weight 1)
              b (leaving, dir, node n, weight 1): AWAY: gone
              c (lost, dir, node n, weight 1): LOST
safety        1 objects CANNOT BE READ NOW
              33% survive 0 more losses (3 objects, 1MiB)
              66% survive 1 more loss (6 objects, 2MiB)
upkeep        mending: 4 objects done, 3 to go, about 2m 5s left
upkeep waits  no room
silent        b
looked at     2026-11-20 10:01:00
verified      2026-11-19 10:00:00: 9 objects, 1MiB, 2 BAD FRAGMENTS; not all read of a, b
verifying     17% read, about 5d 4h left: nothing bad
created       2026-11-20 10:00:00
";
        assert_eq!(view(&backend, &Output::for_test()), expected);
    }

    #[test]
    fn a_plan_as_people_see_it() {
        let of = |k: u8, is_satisfied: bool| {
            serde_json::json!({
                "policy": {"k": k, "m": 2, "c": k + 1, "x": 2}, "is_satisfied": is_satisfied, "fragment_count": 6,
                "stored_percent": 150, "drives_lost_max": 2, "drives_lost_at_once_max": 1, "nodes_lost_max": 1, "sites_lost_max": 0,
            })
        };
        let plan: BackendPlan = serde_json::from_value(serde_json::json!({
            "drive_count": 6, "node_count": 3, "site_count": 2, "policy": {"k": 4, "m": 2, "c": 5, "x": 2},
            "policies": [of(8, false), of(4, true)], "drives_away_max": 1, "nodes_away_max": 0,
            "raw_bytes": 6u64 << 30, "usable_bytes": 4u64 << 30, "remarks": ["two are on one file system"],
        }))
        .unwrap();
        let expected = "\
drives       6 on 3 nodes in 2 sites
policy       4,2,5,2
raw          6GiB
usable       4GiB
may be away  1 drive, 0 nodes: vDisks are opened, read and written on
remarks      two are on one file system

POLICY   SATISFIED  FRAGMENTS  STORED  DRIVES LOST  AFTER AN ACK  NODES LOST  SITES LOST
8,2,9,2  no                 6       -            -             -           -           -
4,2,5,2  yes                6    150%            2             1           1           0
";
        assert_eq!(plan_view(&plan), expected);
    }

    #[test]
    fn presets_as_people_see_them() {
        let preset: Preset = serde_json::from_value(serde_json::json!({
            "uuid": uuid::Uuid::nil(), "name": "default", "revision": 1, "compression": "none", "encryption": "none",
            "fragment_size_bytes": 4194304, "policies": [{"k": 4, "m": 2, "c": 5, "x": 1}, {"k": 1, "m": 0, "c": 1, "x": 1}],
            "is_default": true,
        }))
        .unwrap();
        let expected = "\
PRESET   DEFAULT  COMPRESSION  ENCRYPTION  FRAGMENT  POLICIES (k,m,c,x)
default  yes      none         none            4MiB  4,2,5,1 1,0,1,1
";
        assert_eq!(preset_table(&[preset]).to_string(), expected);
    }
}
