//! What the seeds of `model.rs` found in the engine, each in its fewest steps. Sizes and timing come from the seed, so
//! each is tried under many.

use ovs_tests::{InFlight, Step, check_steps};

fn check(steps: &[Step]) {
    (0..40).for_each(|seed| check_steps(seed, steps));
}

const CREATE: Step = Step::Create { clusters: 50, is_huge: false };
const WRITE: Step = Step::Write { disk: 0, at: 8192, length: 40_000, stable: false };
const SNAPSHOT: Step = Step::Snapshot { disk: 0 };
const CLONE: Step = Step::Clone { disk: 0, snapshot: 0 };

#[test]
fn a_deleted_vdisk_is_not_found_rather_than_damaged() {
    check(&[CREATE, WRITE, Step::Delete { disk: 0 }]);
}

#[test]
fn a_deleted_vdisk_leaves_nothing_that_a_recovery_finds() {
    for milliseconds in [0, 1, 2, 50] {
        check(&[CREATE, WRITE, Step::Delete { disk: 0 }, Step::Wait { milliseconds }, Step::LoseRegistry]);
    }
}

#[test]
fn a_snapshot_of_a_clone_of_a_buffered_snapshot_has_its_data() {
    check(&[CREATE, WRITE, SNAPSHOT, CLONE, Step::Snapshot { disk: 1 }]);
    check(&[CREATE, WRITE, SNAPSHOT, CLONE, Step::Destage { disk: 0 }, Step::Snapshot { disk: 1 }]);
}

#[test]
fn a_clone_is_sent_out_after_its_parent_whatever_the_concurrency() {
    let write = Step::Write { disk: 1, at: 0, length: 20_000, stable: false };
    check(&[CREATE, WRITE, SNAPSHOT, CLONE, write.clone(), Step::Destage { disk: 1 }]);
    let others = [1, 2, 3, 4].map(|disk| Step::Write { disk, at: 0, length: 20_000, stable: false });
    let steps =
        [vec![CREATE, WRITE, SNAPSHOT, CLONE, CLONE, CLONE, CLONE], others.to_vec(), vec![Step::Reopen]];
    check(&steps.concat());
    // Several layers of the parent below the snapshot, none of them sent out yet, and the clone's in between.
    let late = Step::Clone { disk: 0, snapshot: 1 };
    let stuck = Step::BackendFails { calls: 20 };
    let crash = Step::Crash { in_flight: Vec::new(), turns: 0 };
    check(&[CREATE, WRITE, SNAPSHOT, WRITE, SNAPSHOT, stuck, late, write, crash, Step::Destage { disk: 1 }]);
}

#[test]
fn a_recovery_keeps_the_hidden_snapshots_of_clones_in_any_order() {
    check(&[
        CREATE,
        WRITE,
        SNAPSHOT,
        CLONE,
        Step::DeleteSnapshot { disk: 0, snapshot: 0 },
        Step::LoseRegistry,
    ]);
    check(&[CREATE, WRITE, SNAPSHOT, CLONE, CLONE, Step::Delete { disk: 0 }, Step::LoseLocal]);
}

/// The end of a segment is written when the next begins; a flush must take it along.
#[test]
fn what_was_flushed_outlives_a_power_loss_across_segments() {
    let mut steps = vec![CREATE];
    for at in 0..30 {
        steps.push(Step::Write { disk: 0, at: at * 5000, length: 9000, stable: false });
        steps.push(Step::Flush { disk: 0 });
        if at % 5 == 4 {
            steps.push(Step::PowerLoss);
        }
    }
    check(&steps);
    // The device, and where its segments end, come from these seeds.
    ovs_tests::check_seed(109, 30);
    ovs_tests::check_seed(1_000_001, 300);
    // A new segment's header lost, its batches over the old segment's.
    ovs_tests::check_seed(1_000_119, 300);
}

#[test]
fn a_deletion_cut_short_stays_decided() {
    ovs_tests::check_seed(1_000_146, 300);
}

/// Linux tells of a failed sync once; the next one succeeds and means nothing.
#[test]
fn a_sync_that_failed_is_not_asked_again() {
    let fails = |writes, syncs| Step::DeviceFails { writes, syncs };
    for (writes, syncs) in [(0, 1), (0, 2), (1, 1)] {
        check(&[CREATE, WRITE, fails(writes, syncs), Step::Flush { disk: 0 }, Step::PowerLoss]);
    }
    // Nor by the engine that comes after the one that gave up.
    check(&[
        CREATE,
        WRITE,
        fails(1, 1),
        Step::Flush { disk: 0 },
        Step::Wait { milliseconds: 1 },
        Step::PowerLoss,
    ]);
    check_failing(2_000_026, 60);
}

/// The number that a seal would have had, and a segment that was begun and never used.
#[test]
fn segments_given_up_do_not_pass_for_damage() {
    let fails = Step::DeviceFails { writes: 1, syncs: 1 };
    let mut steps = vec![CREATE];
    for at in 0..40 {
        if at % 7 == 1 {
            steps.push(fails.clone());
        }
        steps.push(Step::Write { disk: 0, at: at * 5000, length: 9000, stable: at % 3 == 0 });
    }
    steps.extend([Step::Destage { disk: 0 }, Step::Reopen]);
    check(&steps);
    check_failing(2_000_027, 60);
}

/// Slots that failed are lost until the next start: offline is an answer, waiting for ever is none.
#[test]
fn a_device_that_goes_on_failing_does_not_hang_its_writers() {
    check_failing(2_000_002, 60);
    check_failing(2_000_146, 60);
}

fn check_failing(seed: u64, count: usize) {
    check_steps(seed, &ovs_tests::with_device_failures(seed, ovs_tests::generate(seed, count)));
}

#[test]
fn what_a_clone_cuts_off_of_a_buffered_parent_does_not_come_back() {
    let resize = |clusters| Step::Resize { disk: 1, clusters };
    check(&[CREATE, WRITE, SNAPSHOT, CLONE, resize(1), resize(50), Step::Reopen]);
}

/// A replay with no slot to spare begins no segment; the next one took an older segment for the end of the log and put
/// its seal over the one that was there. As the seed had it: it takes a buffer that is full to the slot.
#[test]
fn a_segment_that_ended_earlier_keeps_its_seal() {
    let steps = [
        Step::Create { clusters: 45, is_huge: false },
        Step::Write { disk: 136, at: 1713201152, length: 45056, stable: false },
        Step::LoseLocal,
        Step::Create { clusters: 3, is_huge: false },
        Step::Write { disk: 151, at: 2394723769, length: 4937, stable: false },
        Step::Write { disk: 124, at: 3259023360, length: 24576, stable: false },
        Step::Snapshot { disk: 154 },
        Step::Clone { disk: 230, snapshot: 220 },
        Step::Snapshot { disk: 214 },
        Step::Clone { disk: 85, snapshot: 141 },
        Step::Clone { disk: 56, snapshot: 93 },
        Step::Reopen,
        Step::WriteMany { disk: 235, at: 2086681690, lengths: vec![3495, 6183, 7398, 4309, 44, 8835] },
        Step::Delete { disk: 21 },
        Step::Crash {
            in_flight: vec![
                InFlight::Write { disk: 79, at: 4075949363, length: 4632, stable: false },
                InFlight::Write { disk: 25, at: 2695274496, length: 4096, stable: false },
                InFlight::Flush { disk: 50 },
            ],
            turns: 54,
        },
        Step::Write { disk: 191, at: 607739603, length: 5676, stable: false },
        Step::LosePages,
        Step::Crash {
            in_flight: vec![
                InFlight::DeleteSnapshot { disk: 12, snapshot: 155 },
                InFlight::Write { disk: 59, at: 3574906880, length: 4096, stable: false },
                InFlight::Delete { disk: 145 },
            ],
            turns: 64,
        },
        Step::Delete { disk: 119 },
        Step::Crash {
            in_flight: vec![
                InFlight::Delete { disk: 122 },
                InFlight::Flush { disk: 24 },
                InFlight::Write { disk: 145, at: 4233927490, length: 3338, stable: true },
                InFlight::Rollback { disk: 203, snapshot: 14 },
            ],
            turns: 50,
        },
        Step::WriteMany {
            disk: 59,
            at: 1168016212,
            lengths: vec![11333, 8568, 10778, 9304, 3997, 10409, 3624],
        },
        Step::Create { clusters: 57, is_huge: false },
        Step::Write { disk: 33, at: 3941320295, length: 29540, stable: false },
        Step::Write { disk: 160, at: 973418496, length: 24576, stable: false },
        Step::Create { clusters: 267, is_huge: false },
        Step::Write { disk: 251, at: 1943928832, length: 8192, stable: false },
        Step::Flush { disk: 123 },
        Step::PowerLoss,
        Step::Write { disk: 112, at: 2371432662, length: 46181, stable: false },
        Step::LosePages,
        Step::Create { clusters: 27, is_huge: false },
        Step::Destage { disk: 85 },
        Step::Crash {
            in_flight: vec![InFlight::Write { disk: 93, at: 1206920205, length: 7325, stable: true }],
            turns: 0,
        },
        Step::Write { disk: 129, at: 3487166464, length: 49152, stable: true },
        Step::PowerLoss,
    ];
    check_steps(1_000_406, &steps);
}
