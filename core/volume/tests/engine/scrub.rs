//! Scrub: what nobody needs is given back, and nothing else.

use crate::world::{MIB, World, range, run};
use ovs_units::{ByteCount, ByteOffset, SnapshotId};
use ovs_volume::{ScrubReport, Vdisk, VolumeError};
use tokio::{task::JoinHandle, time::Instant};

const CLUSTER: u64 = 4096;
/// Clusters of the vDisks here.
const CLUSTERS: u64 = 1024;

async fn fill(disk: &Vdisk, clusters: impl Iterator<Item = u64>, byte: u8) {
    for cluster in clusters {
        let data = vec![byte; CLUSTER as usize].into();
        disk.write(ByteOffset(cluster * CLUSTER), data, false).await.unwrap();
    }
    disk.destage().await.unwrap();
}

/// One byte of each cluster, which is all of it.
async fn bytes(disk: &Vdisk, snapshot: Option<SnapshotId>) -> Vec<u8> {
    let all = range(0, CLUSTERS * CLUSTER);
    let data = match snapshot {
        None => disk.read(all).await.unwrap(),
        Some(id) => disk.read_snapshot(id, all).await.unwrap(),
    };
    let cluster = |cluster: &[u8]| {
        assert!(cluster.iter().all(|byte| *byte == cluster[0]));
        cluster[0]
    };
    data.chunks(CLUSTER as usize).map(cluster).collect()
}

fn scos_of(disk: &Vdisk) -> String {
    format!("v/{}/s/", disk.id().0.simple())
}

async fn scos(world: &World, disk: &Vdisk) -> Vec<String> {
    let prefix = scos_of(disk);
    world.objects().await.into_iter().filter(|name| name.starts_with(&prefix)).collect()
}

/// A scrub in the background.
fn scrubbing(disk: &Vdisk) -> JoinHandle<Result<ScrubReport, VolumeError>> {
    let disk = disk.clone();
    tokio::task::spawn_local(async move { disk.scrub().await })
}

/// Overwritten in parts again and again, scrubbed each time: what has been moved is moved again.
#[test]
fn what_is_overwritten_goes_and_the_rest_is_where_it_was() {
    run(async {
        let mut world = World::new().await;
        let mut disk = world.create(CLUSTERS * CLUSTER).await;
        fill(&disk, 0..CLUSTERS, 1).await;
        let mut expected = vec![1; CLUSTERS as usize];
        for round in 2..8u8 {
            let of_round = (0..CLUSTERS).filter(|cluster| cluster * 7919 % 11 < u64::from(round));
            for cluster in of_round.clone() {
                expected[cluster as usize] = round;
            }
            fill(&disk, of_round, round).await;
            let before = disk.stats();
            let report = disk.scrub().await.unwrap();
            assert_eq!(report.before_bytes, before.stored.0);
            assert_eq!(report.needed_bytes, CLUSTERS * CLUSTER);
            let stats = disk.stats();
            assert_eq!(report.after_bytes, stats.stored.0);
            assert!(report.after_bytes < CLUSTERS * CLUSTER / 4 * 5, "{report:?}");
            assert!(report.moved_bytes < report.before_bytes, "{report:?}");
            assert_eq!(stats.reclaimable.unwrap().0, report.after_bytes - report.needed_bytes);
            assert_eq!(bytes(&disk, None).await, expected, "round {round}");
            match round {
                3 => world.close_and_reopen().await,
                5 => world.crash_and_reopen().await,
                7 => world.lose_local_state().await,
                _ => continue,
            }
            disk = world.open(disk.id()).await;
            assert_eq!(bytes(&disk, None).await, expected, "round {round}, opened again");
            assert_eq!(disk.stats().stored.0, report.after_bytes);
        }
        assert_eq!(world.bytes_below(&scos_of(&disk)).await, disk.stats().stored.0);
        disk.zero(range(0, CLUSTERS * CLUSTER), false).await.unwrap();
        let report = disk.scrub().await.unwrap();
        assert_eq!((report.after_bytes, report.moved_bytes, report.needed_bytes), (0, 0, 0));
        // What grows needs no less than before, what shrinks may.
        disk.resize(ByteCount(2 * CLUSTERS * CLUSTER)).await.unwrap();
        assert_eq!(disk.stats().reclaimable, Some(ByteCount(0)));
        disk.resize(ByteCount(CLUSTERS * CLUSTER)).await.unwrap();
        assert_eq!(disk.stats().reclaimable, None);
        assert_eq!(scos(&world, &disk).await, Vec::<String>::new());
    });
}

/// The journal's beginning is gone, and a copy of the map is of before the scrub: what has happened since tells it.
#[test]
fn an_older_copy_of_the_map_learns_what_was_moved() {
    run(async {
        let mut world = World::new().await;
        world.copy_maps_every(4).await;
        let disk = world.create(CLUSTERS * CLUSTER).await;
        for round in 1..20u8 {
            fill(&disk, (0..CLUSTERS).filter(|cluster| cluster % 20 >= u64::from(round)), round).await;
            if round % 7 == 0 {
                disk.scrub().await.unwrap();
            }
        }
        let expected = bytes(&disk, None).await;
        assert!(disk.stats().scrub_freed_bytes > 0);
        for spoilt in [false, true] {
            let copies: Vec<String> =
                world.objects().await.into_iter().filter(|name| name.contains("/c/")).collect();
            assert!(!copies.is_empty());
            if spoilt {
                world.spoil(&copies[copies.len() - 1..]).await;
            }
            world.lose_local_state().await;
            assert_eq!(bytes(&world.open(disk.id()).await, None).await, expected, "spoilt: {spoilt}");
        }
    });
}

/// A clone reads through a table of its own: what its snapshot has stays where it is until the last one goes.
#[test]
fn what_snapshots_and_clones_need_stays() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(CLUSTERS * CLUSTER).await;
        fill(&disk, 0..CLUSTERS, 1).await;
        let (first, second) = (world.snapshot(&disk, "first").await, world.snapshot(&disk, "second").await);
        fill(&disk, (0..CLUSTERS).filter(|cluster| cluster % 4 > 0), 2).await;
        let clone = world.clone_of(&disk, first, CLUSTERS * CLUSTER).await;
        fill(&clone, 0..10, 3).await;
        fill(&clone, 0..10, 4).await;
        let at_first = scos(&world, &disk).await;
        let report = disk.scrub().await.unwrap();
        assert_eq!(report.moved_bytes, 0, "{report:?}");
        assert_eq!(scos(&world, &disk).await, at_first);
        // Its own goes all the same.
        assert!(clone.scrub().await.unwrap().after_bytes < 2 * 10 * CLUSTER);
        // One that a clone needs is not given back, so nothing is known to have changed.
        let reclaimable = disk.stats().reclaimable.unwrap();
        disk.delete_snapshot(first).await.unwrap();
        assert_eq!(disk.stats().reclaimable, Some(reclaimable));
        disk.delete_snapshot(second).await.unwrap();
        assert_eq!(disk.stats().reclaimable, None);
        assert_eq!(disk.scrub().await.unwrap().moved_bytes, 0);
        let mut expected = vec![1; CLUSTERS as usize];
        expected[..10].fill(4);
        assert_eq!(bytes(&clone, None).await, expected);
        world.crash_and_reopen().await;
        let (disk, clone) = (world.open(disk.id()).await, world.open(clone.id()).await);
        assert_eq!(bytes(&clone, None).await, expected);
        world.delete(&clone).await;
        let report = disk.scrub().await.unwrap();
        assert_eq!(report.needed_bytes, CLUSTERS * CLUSTER);
        assert!(report.after_bytes < CLUSTERS * CLUSTER / 4 * 5, "{report:?}");
        assert_eq!(bytes(&disk, None).await[..6], [1, 2, 2, 2, 1, 2]);
        // The last one that needs what was there before.
        fill(&disk, 0..CLUSTERS, 5).await;
        let report = disk.scrub().await.unwrap();
        assert_eq!((report.moved_bytes, report.needed_bytes), (0, CLUSTERS * CLUSTER), "{report:?}");
    });
}

/// What a clone has in common with its parent: all at first, and then what it has not overwritten, each cluster once.
#[test]
fn what_is_shared_is_told() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(CLUSTERS * CLUSTER).await;
        let shared = |disk: &Vdisk| disk.stats().shared.map(|bytes| bytes.0 / CLUSTER);
        fill(&disk, 0..600, 1).await;
        assert_eq!(shared(&disk), Some(0));
        // Of what its parent has moved elsewhere too.
        fill(&disk, (0..600).filter(|cluster| cluster % 4 > 0), 2).await;
        assert!(disk.scrub().await.unwrap().moved_bytes > 0);
        let snapshot = world.snapshot(&disk, "s").await;
        disk.destage().await.unwrap();
        let clone = world.clone_of(&disk, snapshot, CLUSTERS * CLUSTER).await;
        clone.destage().await.unwrap();
        fill(&clone, 900..901, 3).await;
        assert_eq!(shared(&clone), Some(600));
        fill(&clone, 0..100, 3).await;
        clone.scrub().await.unwrap();
        assert_eq!(shared(&clone), Some(500));
        // Its snapshot has what the clone itself overwrites.
        world.snapshot(&clone, "t").await;
        fill(&clone, 100..200, 4).await;
        clone.scrub().await.unwrap();
        assert_eq!(shared(&clone), Some(500));
        world.close_and_reopen().await;
        let (disk, clone) = (world.open(disk.id()).await, world.open(clone.id()).await);
        assert_eq!((shared(&disk), shared(&clone)), (Some(0), None));
        clone.scrub().await.unwrap();
        assert_eq!(shared(&clone), Some(500));
    });
}

/// It begins with a table of which the scrub does not know.
#[test]
fn a_clone_made_in_the_middle_of_a_scrub_loses_nothing() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(CLUSTERS * CLUSTER).await;
        fill(&disk, 0..CLUSTERS, 1).await;
        fill(&disk, (0..CLUSTERS).filter(|cluster| cluster % 3 > 0), 2).await;
        let snapshot = world.snapshot(&disk, "s").await;
        let gate = world.hold_next_read();
        let scrubbing = scrubbing(&disk);
        world.until_held().await;
        let clone = world.clone_of(&disk, snapshot, CLUSTERS * CLUSTER).await;
        drop(gate);
        let refused = scrubbing.await.unwrap();
        assert!(
            matches!(&refused, Err(VolumeError::Retry(why)) if why.contains("first clone")),
            "{refused:?}"
        );
        disk.scrub().await.unwrap();
        assert_eq!(bytes(&clone, None).await[..6], [1, 2, 2, 1, 2, 2]);
    });
}

/// Whose clones are not all known again gives nothing away.
#[test]
fn after_a_recovery_nothing_goes_before_all_is_known() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(CLUSTERS * CLUSTER).await;
        fill(&disk, 0..CLUSTERS, 1).await;
        let snapshot = world.snapshot(&disk, "s").await;
        let clone = world.clone_of(&disk, snapshot, CLUSTERS * CLUSTER).await;
        fill(&clone, 0..1, 2).await;
        disk.delete_snapshot(snapshot).await.unwrap();
        fill(&disk, 0..CLUSTERS, 3).await;
        world.crash_into_nothing().await;
        world.discover().await;
        world.engine().adopt_vdisk(world.vpool(), disk.id()).await.unwrap();
        let early = world.open(disk.id()).await;
        let refused = early.scrub().await;
        assert!(
            matches!(&refused, Err(VolumeError::Refused(reason)) if reason.contains("recover")),
            "{refused:?}"
        );
        // It learns of its clone while it is open.
        world.engine().adopt_vdisk(world.vpool(), clone.id()).await.unwrap();
        world.engine().finish_recovery(world.vpool()).await.unwrap();
        early.scrub().await.unwrap();
        let there = world.open(clone.id()).await;
        assert_eq!(bytes(&there, None).await[..3], [2, 1, 1]);
        world.close_and_reopen().await;
        let (disk, clone) = (world.open(disk.id()).await, world.open(clone.id()).await);
        disk.scrub().await.unwrap();
        assert_eq!(bytes(&clone, None).await[..3], [2, 1, 1]);
        assert_eq!(bytes(&disk, None).await, vec![3; CLUSTERS as usize]);
        // Also where it is open already.
        world.crash_into_nothing().await;
        for found in world.discover().await {
            world.engine().adopt_vdisk(world.vpool(), found.id).await.unwrap();
        }
        let disk = world.open(disk.id()).await;
        assert!(disk.scrub().await.is_err());
        world.engine().finish_recovery(world.vpool()).await.unwrap();
        disk.scrub().await.unwrap();
    });
}

/// What a crash has left on the backend is found by its name; what is on its way is not taken for such.
#[test]
fn what_nothing_names_is_removed() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(CLUSTERS * CLUSTER).await;
        fill(&disk, 0..CLUSTERS, 1).await;
        fill(&disk, (0..CLUSTERS).filter(|cluster| cluster % 3 > 0), 2).await;
        world.backend_takes_deletions(false);
        disk.scrub().await.unwrap();
        let with_strays = scos(&world, &disk).await.len();
        world.crash_and_reopen().await;
        world.backend_takes_deletions(true);
        let disk = world.open(disk.id()).await;
        let report = disk.scrub().await.unwrap();
        assert!(report.strays_removed > 0, "{report:?}");
        assert_eq!(scos(&world, &disk).await.len() + report.strays_removed as usize, with_strays);
        assert_eq!(bytes(&disk, None).await[..6], [1, 2, 2, 1, 2, 2]);
        // In the same process it is known what has to go.
        world.backend_takes_deletions(false);
        disk.zero(range(0, CLUSTERS * CLUSTER), false).await.unwrap();
        disk.scrub().await.unwrap();
        assert!(!scos(&world, &disk).await.is_empty());
        world.backend_takes_deletions(true);
        assert_eq!(disk.scrub().await.unwrap().strays_removed, 0);
        assert_eq!(scos(&world, &disk).await, Vec::<String>::new());
    });
}

/// Whoever began to read before finds what there was then.
#[test]
fn what_is_being_read_stays_until_that_is_over() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(CLUSTERS * CLUSTER).await;
        fill(&disk, 0..CLUSTERS, 1).await;
        // The next process's epoch is another: what nothing names would be a stray in it.
        world.close_and_reopen().await;
        let disk = world.open(disk.id()).await;
        disk.read(range(0, 1)).await.unwrap();
        let gate = world.hold_next_read();
        let reading = tokio::task::spawn_local({
            let disk = disk.clone();
            async move { disk.read(range(0, CLUSTER)).await }
        });
        tokio::task::yield_now().await;
        fill(&disk, 0..CLUSTERS, 2).await;
        let before = scos(&world, &disk).await.len();
        for _ in 0..2 {
            disk.scrub().await.unwrap();
            assert_eq!(scos(&world, &disk).await.len(), before);
        }
        drop(gate);
        assert!(reading.await.unwrap().unwrap().iter().all(|byte| *byte == 1));
        disk.scrub().await.unwrap();
        assert!(scos(&world, &disk).await.len() < before);
    });
}

/// It is left as it is, and the others are dealt with.
#[test]
fn an_sco_that_cannot_be_read_stays() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(CLUSTERS * CLUSTER).await;
        fill(&disk, 0..CLUSTERS, 1).await;
        let first = scos(&world, &disk).await[0].clone();
        // What is in the middle of it is needed.
        fill(&disk, (0..CLUSTERS).filter(|cluster| cluster % 3 != 1), 2).await;
        world.close_and_reopen().await;
        let disk = world.open(disk.id()).await;
        world.spoil(std::slice::from_ref(&first)).await;
        for _ in 0..2 {
            let report = disk.scrub().await.unwrap();
            assert_eq!(report.unreadable, 1);
            assert!(report.after_bytes < CLUSTERS * CLUSTER / 4 * 5 + MIB, "{report:?}");
        }
        assert!(scos(&world, &disk).await.contains(&first));
        assert_eq!(disk.read(range(699 * CLUSTER, 1)).await.unwrap()[..], [2]);
        // When nothing in it is needed it need not be read.
        fill(&disk, 0..CLUSTERS, 3).await;
        disk.scrub().await.unwrap();
        assert!(!scos(&world, &disk).await.contains(&first));
    });
}

/// Of all that there was to move nothing can be read.
#[test]
fn with_nothing_to_read_nothing_changes() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(CLUSTERS * CLUSTER).await;
        fill(&disk, 0..250, 1).await;
        fill(&disk, (0..250).filter(|cluster| cluster / 50 != 2), 2).await;
        world.close_and_reopen().await;
        let disk = world.open(disk.id()).await;
        let there = scos(&world, &disk).await;
        world.spoil(&there[..1]).await;
        let report = disk.scrub().await.unwrap();
        assert_eq!((report.unreadable, report.moved_bytes), (1, 0), "{report:?}");
        assert_eq!(scos(&world, &disk).await, there);
    });
}

/// Another host has begun where this one's moves were not recorded yet: what they would free is the other's.
#[test]
fn who_has_lost_the_vdisk_removes_nothing() {
    run(async {
        let mut world = World::new().await;
        let old = world.create(CLUSTERS * CLUSTER).await;
        fill(&old, 0..CLUSTERS, 1).await;
        fill(&old, (0..CLUSTERS).filter(|cluster| cluster % 3 > 0), 2).await;
        world.backend_takes_deletions(false);
        old.scrub().await.unwrap();
        world.crash_into_nothing().await;
        for found in world.discover().await {
            world.engine().adopt_vdisk(world.vpool(), found.id).await.unwrap();
        }
        world.engine().finish_recovery(world.vpool()).await.unwrap();
        let new = world.open(old.id()).await;
        fill(&new, 0..1, 3).await;
        let there = scos(&world, &new).await;
        world.backend_takes_deletions(true);
        let refused = old.scrub().await;
        assert!(refused.is_err(), "{refused:?}");
        assert_eq!(scos(&world, &new).await, there);
        assert_eq!(bytes(&new, None).await[..6], [3, 2, 2, 1, 2, 2]);
    });
}

/// A backend that takes nothing: nothing is lost, and the next scrub does what there is to do.
#[test]
fn a_scrub_that_fails_changes_nothing() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(CLUSTERS * CLUSTER).await;
        fill(&disk, 0..CLUSTERS, 1).await;
        fill(&disk, (0..CLUSTERS).filter(|cluster| cluster % 3 > 0), 2).await;
        let before = disk.stats().stored;
        let there = scos(&world, &disk).await;
        // What it could not put may be there or not: that is not removed either.
        world.backend_takes_data(false);
        world.backend_takes_deletions(false);
        disk.scrub().await.unwrap_err();
        world.backend_takes_data(true);
        world.backend_gives_data(false);
        disk.scrub().await.unwrap_err();
        assert_eq!((disk.stats().stored, scos(&world, &disk).await), (before, there));
        world.backend_gives_data(true);
        world.backend_takes_deletions(true);
        let report = disk.scrub().await.unwrap();
        assert!(report.after_bytes < before.0 && report.moved_bytes > 0);
        assert_eq!(bytes(&disk, None).await[..6], [1, 2, 2, 1, 2, 2]);
    });
}

/// It ends with what it has done; the next one does the rest.
#[test]
fn a_scrub_that_is_cancelled_ends_soon() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(CLUSTERS * CLUSTER).await;
        fill(&disk, 0..CLUSTERS, 1).await;
        // Some that nobody needs go first, alone; then what has to be read.
        fill(&disk, 0..CLUSTERS / 2, 2).await;
        fill(&disk, (CLUSTERS / 2..CLUSTERS).filter(|cluster| cluster % 3 > 0), 2).await;
        let gate = world.hold_next_read();
        let scrubbing = scrubbing(&disk);
        world.until_held().await;
        let (done, all) = disk.scrub_progress();
        assert!(0 < done && done < all, "{done} of {all}");
        disk.cancel_scrub();
        drop(gate);
        let report = scrubbing.await.unwrap().unwrap();
        assert!(report.after_bytes < report.before_bytes, "{report:?}");
        disk.scrub().await.unwrap();
        assert!(disk.stats().stored.0 < CLUSTERS * CLUSTER / 4 * 5);
        assert_eq!(bytes(&disk, None).await[510..516], [2, 2, 2, 1, 2, 2]);
    });
}

/// Of a map with many pages.
#[test]
fn what_is_far_apart_is_found() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(512 * MIB).await;
        let apart = |byte: u8| fill(&disk, (0..256).map(|number| number * 512), byte);
        apart(1).await;
        apart(2).await;
        let report = disk.scrub().await.unwrap();
        assert_eq!((report.needed_bytes, report.moved_bytes), (256 * CLUSTER, 0), "{report:?}");
        assert_eq!(disk.read(range(200 * 512 * CLUSTER, 1)).await.unwrap()[..], [2]);
    });
}

#[test]
fn it_begins_by_itself_where_a_quarter_is_not_needed() {
    run(async {
        let mut world = World::new().await;
        world.scrub_often().await;
        let disk = world.create(CLUSTERS * CLUSTER).await;
        fill(&disk, 0..CLUSTERS, 1).await;
        fill(&disk, 0..CLUSTERS / 5, 2).await;
        world.wait_ms(100).await;
        assert_eq!(disk.stats().scrub_freed_bytes, 0);
        fill(&disk, 0..CLUSTERS / 5, 3).await;
        for _ in 0..500 {
            if disk.stats().scrub_freed_bytes > 0 {
                break;
            }
            world.wait_ms(10).await;
        }
        assert!(disk.stats().stored.0 < CLUSTERS * CLUSTER / 4 * 5);
        assert_eq!(bytes(&disk, None).await[CLUSTERS as usize / 5 - 1..][..2], [3, 1]);
        // And again.
        let freed = disk.stats().scrub_freed_bytes;
        fill(&disk, 0..CLUSTERS, 4).await;
        world.wait_ms(100).await;
        assert!(disk.stats().scrub_freed_bytes > freed);
    });
}

/// What a crash has left is looked for once, by a vDisk that is written to.
#[test]
fn what_nothing_names_is_looked_for_unasked() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(CLUSTERS * CLUSTER).await;
        fill(&disk, 0..CLUSTERS, 1).await;
        fill(&disk, 0..CLUSTERS, 2).await;
        world.backend_takes_deletions(false);
        disk.scrub().await.unwrap();
        let with_strays = scos(&world, &disk).await.len();
        world.backend_takes_deletions(true);
        world.scrub_only_when_asked();
        world.scrub_often().await;
        fill(&world.open(disk.id()).await, 0..1, 3).await;
        world.wait_ms(100).await;
        assert_eq!(scos(&world, &disk).await.len(), with_strays + 1);
        world.scrub_unasked().await;
        let disk = world.open(disk.id()).await;
        let epoch = disk.stats().epoch;
        world.wait_ms(100).await;
        assert_eq!((scos(&world, &disk).await.len(), disk.stats().epoch), (with_strays + 1, epoch));
        fill(&disk, 0..1, 4).await;
        world.wait_ms(100).await;
        assert_eq!(scos(&world, &disk).await.len(), with_strays - 4 + 2);
    });
}

#[test]
fn after_a_failure_six_looks_pass() {
    run(async {
        let mut world = World::new().await;
        world.scrub_often().await;
        let disk = world.create(CLUSTERS * CLUSTER).await;
        fill(&disk, 0..CLUSTERS, 1).await;
        world.backend_gives_data(false);
        fill(&disk, (0..CLUSTERS).filter(|cluster| cluster % 3 > 0), 2).await;
        world.wait_ms(103).await;
        assert_eq!(world.reads_refused(), 4, "at 5, 35, 65 and 95 ms");
        world.backend_gives_data(true);
        world.wait_ms(100).await;
        assert!(disk.stats().scrub_moved_bytes > 0);
    });
}

/// What is needed less by the time that it ends has to be found out anew.
#[test]
fn a_snapshot_that_goes_during_a_scrub_is_given_back_by_the_next() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(CLUSTERS * CLUSTER).await;
        fill(&disk, 0..CLUSTERS, 1).await;
        fill(&disk, (0..CLUSTERS).filter(|cluster| cluster % 2 > 0), 2).await;
        let snapshot = world.snapshot(&disk, "s").await;
        fill(&disk, 0..CLUSTERS, 3).await;
        let gate = world.hold_next_read();
        let under_way = scrubbing(&disk);
        world.until_held().await;
        disk.delete_snapshot(snapshot).await.unwrap();
        drop(gate);
        let report = under_way.await.unwrap().unwrap();
        assert_eq!((report.needed_bytes, disk.stats().reclaimable), (2 * CLUSTERS * CLUSTER, None));
        assert_eq!(disk.scrub().await.unwrap().needed_bytes, CLUSTERS * CLUSTER);
    });
}

#[test]
fn what_is_written_during_a_scrub_is_needed() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(CLUSTERS * CLUSTER).await;
        fill(&disk, 0..CLUSTERS / 2, 1).await;
        fill(&disk, (0..CLUSTERS / 2).filter(|cluster| cluster % 3 > 0), 2).await;
        let gate = world.hold_next_read();
        let under_way = scrubbing(&disk);
        world.until_held().await;
        fill(&disk, CLUSTERS / 2..CLUSTERS / 2 + 7, 3).await;
        drop(gate);
        let report = under_way.await.unwrap().unwrap();
        assert_eq!(report.needed_bytes, CLUSTERS / 2 * CLUSTER);
        // With the header of the SCO that they are in.
        let (needed, stats) = (report.needed_bytes + 8 * CLUSTER, disk.stats());
        assert_eq!(stats.reclaimable.unwrap().0, stats.stored.0 - needed);
        assert_eq!(bytes(&disk, None).await[509..520], [2, 1, 2, 3, 3, 3, 3, 3, 3, 3, 0]);
    });
}

async fn journal_records(world: &World) -> usize {
    world.objects().await.iter().filter(|name| name.contains("/j/")).count()
}

/// What fills four new SCOs.
#[test]
fn a_journal_record_moves_four_new_scos_at_most() {
    run(async {
        let mut world = World::new().await;
        // Of these SCOs, half of each needed, eight and nine are moved.
        for (scos, expected) in [(10, 1), (11, 2)] {
            let disk = world.create(scos * MIB).await;
            for sco in 0..scos {
                disk.write(ByteOffset(sco * MIB), vec![1; MIB as usize].into(), false).await.unwrap();
                disk.destage().await.unwrap();
            }
            for sco in 0..scos {
                disk.zero(range(sco * MIB, MIB / 2), false).await.unwrap();
            }
            disk.destage().await.unwrap();
            let before = journal_records(&world).await;
            let report = disk.scrub().await.unwrap();
            assert_eq!(report.moved_bytes, (7 + expected as u64) * MIB / 2);
            assert_eq!(journal_records(&world).await, before + expected);
        }
    });
}

#[test]
fn a_journal_record_moves_512_old_scos_at_most() {
    run(async {
        let mut world = World::new().await;
        world.make_scos_of(CLUSTER).await;
        for (clusters, expected) in [(512, 1), (513, 2)] {
            let disk = world.create(CLUSTERS * CLUSTER).await;
            let data = vec![1; (clusters * CLUSTER) as usize];
            disk.write(ByteOffset(0), data.into(), false).await.unwrap();
            disk.destage().await.unwrap();
            disk.zero(range(0, clusters * CLUSTER), false).await.unwrap();
            fill(&disk, 0..1, 2).await;
            let before = journal_records(&world).await;
            disk.scrub().await.unwrap();
            assert_eq!(journal_records(&world).await, before + expected);
            assert_eq!(scos(&world, &disk).await.len(), 1);
        }
    });
}

/// A guest that is busy gets three times the time that scrub takes, two seconds at most.
#[test]
fn a_busy_guest_gets_more_time_than_scrub() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(CLUSTERS * CLUSTER).await;
        for (guest, took_ms, expected_ms) in
            [("idle", 200, 200), ("reads", 200, 800), ("flushes", 200, 800), ("flushes", 1000, 3000)]
        {
            let disk = world.open(disk.id()).await;
            fill(&disk, 0..CLUSTERS, 1).await;
            fill(&disk, (0..CLUSTERS).filter(|cluster| cluster % 3 > 0), 2).await;
            world.close_and_reopen().await;
            let disk = world.open(disk.id()).await;
            let begun = Instant::now();
            let gate = world.hold_next_read();
            let under_way = scrubbing(&disk);
            world.until_held().await;
            match guest {
                "reads" => drop(disk.read(range(0, CLUSTER)).await.unwrap()),
                "flushes" => disk.flush().await.unwrap(),
                _ => {}
            }
            world.wait_ms(took_ms).await;
            drop(gate);
            assert!(under_way.await.unwrap().unwrap().moved_bytes > 0);
            assert_eq!(begun.elapsed().as_millis(), expected_ms, "{guest}");
        }
    });
}

/// SCOs are named after the epoch in which they are put: of one that is over they would be strays.
#[test]
fn a_new_epoch_ends_what_was_moved_in_the_old_one() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(CLUSTERS * CLUSTER).await;
        fill(&disk, 0..CLUSTERS, 1).await;
        fill(&disk, (0..CLUSTERS).filter(|cluster| cluster % 3 > 0), 2).await;
        let there = scos(&world, &disk).await;
        let gate = world.hold_next_read();
        let under_way = scrubbing(&disk);
        world.until_held().await;
        world.begin_an_epoch(&disk).await;
        drop(gate);
        let ended = under_way.await.unwrap();
        assert!(matches!(&ended, Err(VolumeError::Retry(why)) if why.contains("epoch")), "{ended:?}");
        assert_eq!(scos(&world, &disk).await, there);
        assert!(disk.scrub().await.unwrap().moved_bytes > 0);
    });
}

/// Room for writes is made by what leaves, unless nothing does. Where there is room nothing is waited for.
#[test]
fn while_the_buffer_is_full_what_leaves_it_goes_first() {
    run(async {
        let mut world = World::with_slots_of(16 * CLUSTER).await;
        let (disk, other) = (world.create(MIB).await, world.create(MIB).await);
        for (is_full, is_cancelled, expected_ms) in
            [(false, false, 0), (true, false, 1500), (true, true, 500)]
        {
            world.wait(5).await;
            fill(&disk, 0..60, 1).await;
            fill(&disk, (0..60).filter(|cluster| cluster % 3 > 0), 2).await;
            let gate = is_full.then(|| world.hold_next_put());
            // Zeros may take more of it than data, and wait for that.
            let writing = tokio::task::spawn_local({
                let other = other.clone();
                async move {
                    other.write(ByteOffset(0), vec![3; CLUSTER as usize].into(), false).await?;
                    for cluster in 1..if is_full { 200 } else { 1 } {
                        other.zero(range(cluster * CLUSTER, CLUSTER), false).await?;
                    }
                    Ok::<(), VolumeError>(())
                }
            });
            world.wait_ms(500).await;
            let begun = Instant::now();
            let under_way = scrubbing(&disk);
            if is_cancelled {
                world.wait_ms(450).await;
                disk.cancel_scrub();
            }
            let report = under_way.await.unwrap().unwrap();
            assert_eq!((report.moved_bytes > 0, begun.elapsed().as_millis()), (!is_cancelled, expected_ms));
            drop(gate);
            writing.await.unwrap().unwrap();
            other.destage().await.unwrap();
            disk.scrub().await.unwrap();
        }
    });
}

/// What nobody needs may be the room that the backend lacks.
#[test]
fn a_full_backend_is_made_room_on() {
    run(async {
        let mut world = World::new().await;
        let disk = world.create(CLUSTERS * CLUSTER).await;
        fill(&disk, 0..CLUSTERS, 1).await;
        fill(&disk, 0..CLUSTERS, 2).await;
        world.set_room(0);
        disk.write(ByteOffset(0), vec![3; CLUSTER as usize].into(), false).await.unwrap();
        let report = disk.scrub().await.unwrap();
        assert_eq!((report.needed_bytes, report.moved_bytes), (CLUSTERS * CLUSTER, 0), "{report:?}");
        assert!(report.after_bytes < report.before_bytes);
        assert_eq!(disk.stats().buffered, ByteCount(CLUSTER));
        world.set_room(1);
        disk.destage().await.unwrap();
        assert_eq!(bytes(&disk, None).await[..3], [3, 2, 2]);
    });
}

/// It has no name yet, and is no stray.
#[test]
fn what_is_on_its_way_stays() {
    run(async {
        let mut world = World::new().await;
        world.scrub_often().await;
        let disk = world.create(CLUSTERS * CLUSTER).await;
        disk.write(ByteOffset(0), vec![1; 2 * MIB as usize].into(), false).await.unwrap();
        let gate = world.hold_next_put();
        let leaving = tokio::task::spawn_local({
            let disk = disk.clone();
            async move { disk.destage().await }
        });
        world.until_held().await;
        // Of two one is there.
        world.wait_ms(100).await;
        assert_eq!(scos(&world, &disk).await.len(), 1);
        drop(gate);
        leaving.await.unwrap().unwrap();
        assert!(disk.read(range(0, 2 * MIB)).await.unwrap().iter().all(|byte| *byte == 1));
    });
}
