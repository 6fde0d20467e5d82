//! `ovs vdisk limits`: what guests may do per second.

use super::Context;
use crate::{
    args::{LimitArgs, target::VdiskTarget},
    failure::Failure,
    output::{Fields, size},
};
use ovs_api::PatchVdisk;
use ovs_units::{Limits, Rates};

pub(super) async fn run(
    context: &Context,
    vdisk: VdiskTarget,
    none: bool,
    args: LimitArgs,
) -> Result<(), Failure> {
    let given = args.patch();
    let limits = if none { given.alone() } else { given };
    if limits.is_empty() {
        let shown = context.client.get_vdisk(&vdisk.0).await?;
        return context.output.object(&shown.limits, view);
    }
    let changed =
        context.client.update_vdisk(&vdisk.0, &PatchVdisk { limits, ..PatchVdisk::default() }).await?;
    let told = match lines(&changed.limits).collect::<Vec<_>>() {
        told if told.is_empty() => "not limited".to_owned(),
        told => format!("limited to {}", told.join(", ")),
    };
    context.output.done(&changed, format!("{vdisk} is {told}"))
}

fn view(limits: &Limits) -> String {
    match lines(limits).collect::<Vec<_>>() {
        none if none.is_empty() => "not limited\n".to_owned(),
        lines => Fields::new().with_each("limits", lines).to_string(),
    }
}

/// Limits as people read them.
pub(super) fn lines(limits: &Limits) -> impl Iterator<Item = String> + use<> {
    let burst_s = limits.burst().as_secs();
    limits.groups().into_iter().flat_map(move |(kind, rates)| {
        let what = if kind == "total" { String::new() } else { format!("{kind} ") };
        let Rates { iops, iops_burst, bytes_per_s, bytes_per_s_burst } = rates;
        let burst = move |burst: Option<String>| {
            burst.map(|burst| format!(" ({burst} for {burst_s}s)")).unwrap_or_default()
        };
        let requests =
            iops.map(|iops| format!("{what}{iops} IOPS{}", burst(iops_burst.map(|count| count.to_string()))));
        let bytes = bytes_per_s.map(|bytes| {
            let per_s = |bytes: u64| format!("{}/s", size(bytes));
            format!("{what}{}{}", per_s(bytes), burst(bytes_per_s_burst.map(per_s)))
        });
        [requests, bytes].into_iter().flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_as_people_see_them() {
        let limits = Limits {
            total: Rates { iops: Some(500), iops_burst: Some(2000), ..Rates::default() },
            read: Rates { bytes_per_s: Some(100 << 20), ..Rates::default() },
            write: Rates {
                iops: Some(100),
                bytes_per_s: Some(10 << 20),
                bytes_per_s_burst: Some(20 << 20),
                ..Rates::default()
            },
            burst_s: Some(10),
        };
        let expected = "\
limits  500 IOPS (2000 for 10s)
        read 100MiB/s
        write 100 IOPS
        write 10MiB/s (20MiB/s for 10s)
";
        assert_eq!((view(&limits), view(&Limits::default())), (expected.into(), "not limited\n".into()));
    }
}
