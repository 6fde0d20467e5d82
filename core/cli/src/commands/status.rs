//! `ovs status`

use super::{Context, word};
use crate::{
    failure::Failure,
    output::{Align, Fields, Output, Table, duration, size, time},
};
use ovs_api::{CacheSpace, Status};

pub(super) async fn run(context: &Context) -> Result<(), Failure> {
    let status = context.client.get_status().await?;
    context.output.object(&status, |status| view(status, &context.output))
}

fn view(status: &Status, output: &Output) -> String {
    let started = format!("{} ({} ago)", time(&status.started_at, &output.zone), duration(status.uptime_s));
    let buffer = format!("{} of {} used", size(status.buffer.used_bytes), size(status.buffer.total_bytes));
    let fields = Fields::new()
        .with("state", word(status.state))
        .with("host", &status.host.name)
        .with("version", &status.version)
        .with("started", started)
        .with("write buffer", buffer)
        .with_some("read cache", status.cache.as_ref().map(cache_line))
        .with("vPools", status.vpool_count)
        .with("vDisks", status.vdisk_count)
        .with("attachments", status.attachment_count)
        .to_string();
    if status.alarms.is_empty() {
        return fields;
    }
    let columns =
        [("ALARM", Align::Left), ("ABOUT", Align::Left), ("SINCE", Align::Left), ("DETAIL", Align::Left)];
    let alarms = Table::new(columns).rows(&status.alarms, |alarm| {
        [word(alarm.kind), alarm.subject.clone(), time(&alarm.since, &output.zone), alarm.detail.clone()]
    });
    format!("{fields}\n{alarms}")
}

fn cache_line(cache: &CacheSpace) -> String {
    let CacheSpace { used_bytes, total_bytes, quotas_bytes, has_ssd, .. } = *cache;
    let place = if has_ssd { "on SSD" } else { "in memory" };
    format!("{} of {} used, {place}; quotas of {}", size(used_bytes), size(total_bytes), size(quotas_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn as_people_see_it() {
        let status: Status = serde_json::from_value(json!({
            "version": "0.1.0", "protocol": {"min": 1, "max": 1}, "state": "degraded",
            "host": {
                "uuid": "00000000-0000-0000-0000-000000000001", "name": "h1", "state": "online", "version": "0.1.0",
                "is_local": true, "started_at": "2026-11-20T10:00:00Z",
            },
            "started_at": "2026-11-20T10:00:00Z", "uptime_s": 3725,
            "buffer": {"total_bytes": 1073741824, "used_bytes": 12582912},
            "cache": {
                "total_bytes": 1073741824, "used_bytes": 1048576, "memory_used_bytes": 4096, "has_ssd": true,
                "quotas_bytes": 2147483648u64,
            },
            "vpool_count": 1, "vdisk_count": 3, "attachment_count": 2,
            "alarms": [{
                "kind": "buffer_space", "subject": "h1", "detail": "the write buffer is 91 % full", "used_percent": 91,
                "since": "2026-11-20T11:00:00Z",
            }],
        }))
        .unwrap();
        let expected = "\
state         degraded
host          h1
version       0.1.0
started       2026-11-20 10:00:00 (1h 2m ago)
write buffer  12MiB of 1GiB used
read cache    1MiB of 1GiB used, on SSD; quotas of 2GiB
vPools        1
vDisks        3
attachments   2

ALARM         ABOUT  SINCE                DETAIL
buffer-space  h1     2026-11-20 11:00:00  the write buffer is 91 % full
";
        assert_eq!(view(&status, &Output::for_test()), expected);
    }
}
