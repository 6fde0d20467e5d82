//! What dockerd, containers and the host do to volumes.

use super::world::{Disk, Sim, SimRecords};
use crate::{
    driver::{ContainerUse, Driver, DriverError, Settings, Watch},
    host::DeviceKind,
    options::Fstype,
    ovsd::{LABEL_FORMATTED, OvsdError},
    record::Records,
    refs::MountId,
};
use ovs_units::Name;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

type SimDriver = Driver<Sim, Sim, SimRecords>;

/// A host with dockerd: it sends again what broke, and knows which containers run.
struct Machine {
    sim: Sim,
    directory: tempfile::TempDir,
    driver: SimDriver,
    containers: BTreeSet<String>,
    boot: u64,
    /// So many steps after the next restart the plugin dies again.
    next_kill: Option<u64>,
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn id(text: &str) -> MountId {
    MountId::new(text).unwrap()
}

fn opts(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn start(sim: &Sim, directory: &Path, boot: u64) -> SimDriver {
    let settings = Settings {
        mounts: "/mounts".into(),
        vpool: name("default"),
        size_bytes: 10 << 30,
        boot_id: boot.to_string(),
    };
    let records = SimRecords::new(sim.clone(), directory, &boot.to_string());
    Driver::new(sim.clone(), sim.clone(), records, settings).unwrap()
}

impl Machine {
    fn new() -> Machine {
        // Thousands of lives, each with its syncs: in memory where that is possible.
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let sim = Sim::default();
        let driver = start(&sim, directory.path(), 1);
        Machine { sim, directory, driver, containers: BTreeSet::new(), boot: 1, next_kill: None }
    }

    fn restart(&mut self) {
        let next = self.next_kill.take();
        self.sim.kill_after(next);
        self.driver = start(&self.sim, self.directory.path(), self.boot);
    }

    /// Does it, again if the plugin died on it, like dockerd.
    async fn create(&mut self, volume: &str, pairs: &[(&str, &str)]) -> Result<(), DriverError> {
        let mut result = self.driver.create(&name(volume), &opts(pairs)).await;
        while self.sim.is_killed() {
            self.restart();
            result = self.driver.create(&name(volume), &opts(pairs)).await;
        }
        result
    }

    async fn mount(&mut self, volume: &str, mount_id: &str) -> Result<PathBuf, DriverError> {
        let mut result = self.driver.mount(&name(volume), &id(mount_id)).await;
        while self.sim.is_killed() {
            self.restart();
            result = self.driver.mount(&name(volume), &id(mount_id)).await;
        }
        result.map(|mounted| mounted.path)
    }

    async fn unmount(&mut self, volume: &str, mount_id: &str) -> Result<(), DriverError> {
        let mut result = self.driver.unmount(&name(volume), &id(mount_id)).await;
        while self.sim.is_killed() {
            self.restart();
            result = self.driver.unmount(&name(volume), &id(mount_id)).await;
        }
        result
    }

    async fn remove(&mut self, volume: &str) -> Result<(), DriverError> {
        let mut result = self.driver.remove(&name(volume)).await;
        while self.sim.is_killed() {
            self.restart();
            result = self.driver.remove(&name(volume)).await;
        }
        result
    }

    /// A container starts: dockerd mounts, then the runtime makes a namespace.
    async fn run(&mut self, container: &str, volume: &str) {
        let path = self.mount(volume, container).await.unwrap();
        self.sim.container_starts(container, path.parent().unwrap());
        self.containers.insert(container.to_owned());
    }

    async fn stop(&mut self, container: &str, volume: &str) {
        self.sim.container_ends(container);
        self.containers.remove(container);
        self.unmount(volume, container).await.unwrap();
    }

    async fn reconcile(&mut self, volume: &str, passes: usize) {
        let mut watch = Watch::default();
        for _ in 0..passes {
            let uses = self.containers.iter().cloned().collect::<Vec<_>>();
            let uses = match uses.is_empty() {
                true => BTreeMap::new(),
                false => BTreeMap::from([(name(volume), uses)]),
            };
            self.driver.reconcile(Some(&ContainerUse(uses)), &mut watch).await;
            if self.sim.is_killed() {
                self.restart();
            }
        }
    }

    async fn references(&self, volume: &str) -> u64 {
        self.driver.get(&name(volume)).await.unwrap().status.mounts
    }

    fn record_count(&self) -> usize {
        SimRecords::new(self.sim.clone(), self.directory.path(), &self.boot.to_string()).load().unwrap().len()
    }

    #[track_caller]
    fn check_nothing_left(&self, vdisks: usize) {
        assert_eq!(self.sim.counts(), (0, 0, vdisks), "devices, mounts, vDisks");
        assert_eq!(self.record_count(), 0, "records");
    }
}

fn writes(machine: &Machine, volume: &str) -> u64 {
    match machine.sim.disk(volume) {
        Disk::FileSystem { writes, .. } => writes,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn check_error<T: std::fmt::Debug>(result: Result<T, DriverError>, part: &str) {
    let text = result.expect_err("refused").to_string();
    assert!(text.contains(part), "{text:?} lacks {part:?}");
}

/// The life of a volume; two containers one after the other and `docker cp` on the first.
async fn life(machine: &mut Machine, pairs: &[(&str, &str)]) {
    machine.create("v", pairs).await.unwrap();
    machine.run("a", "v").await;
    machine.sim.container_writes("a");
    // docker cp: the running mount's own ID.
    machine.mount("v", "a").await.unwrap();
    machine.unmount("v", "a").await.unwrap();
    machine.sim.container_writes("a");
    machine.run("b", "v").await;
    machine.sim.container_writes("b");
    machine.stop("a", "v").await;
    machine.sim.container_writes("b");
    machine.reconcile("v", 2).await;
    machine.sim.container_writes("b");
    machine.stop("b", "v").await;
    machine.run("c", "v").await;
    machine.sim.container_writes("c");
    machine.stop("c", "v").await;
    assert_eq!(writes(machine, "v"), 6);
    // A Mount that dockerd sent twice was counted twice; the reconciler finds out.
    machine.reconcile("v", 3).await;
    machine.remove("v").await.unwrap();
    machine.check_nothing_left(0);
}

/// Kills the plugin at every step of a life, and again some steps after it came back.
async fn sweep(kind: DeviceKind, next_kill: Option<u64>, least_kills: u64) {
    for step in 0.. {
        let mut machine = Machine::new();
        machine.sim.set_nbd(kind == DeviceKind::Nbd);
        machine.next_kill = next_kill;
        machine.sim.kill_after(Some(step));
        life(&mut machine, &[("size", "1GiB")]).await;
        if machine.sim.world().kill_count == 0 {
            assert!(step >= least_kills, "a life has only {step} steps");
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_volume_lives_through_a_kill_at_every_step() {
    sweep(DeviceKind::Loop, None, 80).await;
    sweep(DeviceKind::Nbd, None, 80).await;
}

#[tokio::test(start_paused = true)]
async fn a_volume_lives_through_two_kills() {
    for next_kill in [0, 1, 2, 3, 5, 8, 13, 21] {
        sweep(DeviceKind::Loop, Some(next_kill), 80).await;
        sweep(DeviceKind::Nbd, Some(next_kill), 80).await;
    }
}

#[tokio::test]
async fn references_count_one_mount_id_several_times() {
    let mut machine = Machine::new();
    machine.create("v", &[]).await.unwrap();
    machine.run("a", "v").await;
    for _ in 0..3 {
        machine.mount("v", "a").await.unwrap();
        machine.unmount("v", "a").await.unwrap();
        assert_eq!((machine.references("v").await, machine.sim.counts()), (1, (1, 1, 1)));
    }
    machine.restart();
    assert_eq!(machine.references("v").await, 1);
    machine.stop("a", "v").await;
    machine.unmount("v", "a").await.unwrap();
    machine.check_nothing_left(1);
}

#[tokio::test]
async fn a_second_create_is_compared() {
    let mut machine = Machine::new();
    machine.create("v", &[("size", "1GiB"), ("mode", "0700")]).await.unwrap();
    machine.create("v", &[("size", "1GiB"), ("mode", "0700")]).await.unwrap();
    machine.create("v", &[]).await.unwrap();
    check_error(machine.create("v", &[("size", "2GiB")]).await, "size is 1GiB, asked for 2GiB");
    check_error(machine.create("v", &[("fstype", "xfs")]).await, "fstype is ext4, asked for xfs");
    check_error(machine.create("w", &[("colour", "red")]).await, "allowed: from, fstype");
    machine.sim.change("v", |facts| facts.labels.clear());
    check_error(machine.create("v", &[]).await, "not a Docker volume");
    check_error(machine.mount("v", "a").await, "no such volume");
    assert_eq!(machine.sim.counts().2, 1);
}

#[tokio::test]
async fn only_what_nobody_had_yet_is_formatted() {
    let mut machine = Machine::new();
    machine.create("v", &[]).await.unwrap();
    // Left half formatted by a plugin that died.
    machine.sim.set_disk("v", Disk::HalfFormatted);
    machine.run("a", "v").await;
    machine.stop("a", "v").await;
    assert_eq!(machine.sim.world().format_count, 1);
    // A label that was lost does not mean that the volume is new.
    machine.sim.change("v", |facts| drop(facts.labels.remove(LABEL_FORMATTED)));
    machine.run("a", "v").await;
    machine.stop("a", "v").await;
    machine.sim.set_disk("v", Disk::Blank);
    check_error(machine.mount("v", "a").await, "no ext4 or xfs");
    assert_eq!(machine.sim.world().format_count, 1);
    machine.check_nothing_left(1);
}

#[tokio::test]
async fn clones_keep_their_origins_file_system() {
    let mut machine = Machine::new();
    machine.create("v", &[("fstype", "xfs")]).await.unwrap();
    check_error(machine.create("c", &[("from", "v")]).await, "never mounted");
    machine.run("a", "v").await;
    machine.sim.container_writes("a");
    check_error(machine.create("c", &[("from", "v"), ("fstype", "ext4")]).await, "which has xfs");
    check_error(machine.create("c", &[("from", "v"), ("size", "1GiB")]).await, "at least 10GiB");
    check_error(machine.create("c", &[("from", "v"), ("vpool", "other")]).await, "no such volume or vDisk");
    check_error(machine.create("c", &[("from", "w")]).await, "no such volume or vDisk: default/w");
    check_error(machine.create("c", &[("template", "v")]).await, "not a template");
    machine.create("c", &[("from", "v"), ("size", "20GiB")]).await.unwrap();
    machine.run("b", "c").await;
    assert_eq!(machine.sim.world().format_count, 1);
    let expected = Disk::FileSystem {
        fstype: Fstype::Xfs,
        writes: 1,
        has_data: true,
        size_bytes: 20 << 30,
        has_errors: false,
    };
    assert_eq!(machine.sim.disk("c"), expected);
    machine.stop("b", "c").await;
    machine.stop("a", "v").await;
    machine.sim.change("v", |facts| facts.is_template = true);
    check_error(machine.create("d", &[("from", "v")]).await, "is a template");
    machine.create("d", &[("template", "v")]).await.unwrap();
    machine.run("d", "d").await;
    assert_eq!(writes(&machine, "d"), 1);
}

#[tokio::test]
async fn a_failed_mount_of_a_running_id_leaves_a_tombstone() {
    let mut machine = Machine::new();
    machine.create("v", &[]).await.unwrap();
    machine.run("a", "v").await;
    machine.sim.edge_dies();
    machine.sim.set_ovsd_away(true);
    // docker cp fails, and dockerd sends Unmount nevertheless.
    assert!(machine.mount("v", "a").await.is_err());
    machine.sim.set_ovsd_away(false);
    machine.unmount("v", "a").await.unwrap();
    assert_eq!(machine.references("v").await, 1);
    machine.stop("a", "v").await;
    machine.check_nothing_left(1);
}

#[tokio::test]
async fn dockerd_died_without_live_restore() {
    let mut machine = Machine::new();
    machine.create("v", &[]).await.unwrap();
    machine.run("a", "v").await;
    // The container ends, its Unmount never comes.
    machine.sim.container_ends("a");
    // Docker still lists it: nothing happens, however often.
    machine.reconcile("v", 5).await;
    assert_eq!(machine.references("v").await, 1);
    machine.containers.clear();
    machine.reconcile("v", 1).await;
    assert_eq!(machine.references("v").await, 1, "one look is not enough");
    machine.reconcile("v", 2).await;
    assert_eq!(machine.references("v").await, 0);
    machine.check_nothing_left(1);
}

#[tokio::test]
async fn references_stay_while_it_is_not_certain_that_nobody_runs() {
    let mut machine = Machine::new();
    machine.create("v", &[]).await.unwrap();
    machine.run("a", "v").await;
    // Docker does not list it, but its namespace is there.
    machine.containers.clear();
    machine.reconcile("v", 5).await;
    assert_eq!(machine.references("v").await, 1);
    machine.sim.container_ends("a");
    // Docker cannot be asked.
    let mut watch = Watch::default();
    for _ in 0..5 {
        machine.driver.reconcile(None, &mut watch).await;
    }
    assert_eq!(machine.references("v").await, 1);
    // A container is being started: Mount has come since the first look.
    let nobody = ContainerUse::default();
    machine.driver.reconcile(Some(&nobody), &mut watch).await;
    machine.mount("v", "b").await.unwrap();
    machine.driver.reconcile(Some(&nobody), &mut watch).await;
    assert_eq!(machine.references("v").await, 2);
    machine.driver.reconcile(Some(&nobody), &mut watch).await;
    assert_eq!(machine.references("v").await, 0);
}

#[tokio::test]
async fn a_device_that_lives_in_a_namespace_is_used_again() {
    let mut machine = Machine::new();
    machine.create("v", &[]).await.unwrap();
    machine.run("a", "v").await;
    // One Unmount too many (dockerd sent it twice): the container still runs on its own mount.
    machine.unmount("v", "a").await.unwrap();
    assert_eq!(machine.sim.counts(), (1, 0, 1));
    check_error(machine.remove("v").await, "in use");
    machine.restart();
    machine.reconcile("v", 3).await;
    check_error(machine.remove("v").await, "another mount namespace");
    machine.run("b", "v").await;
    machine.sim.container_writes("a");
    machine.sim.container_writes("b");
    assert_eq!(machine.sim.counts(), (1, 1, 1), "the same device");
    machine.stop("b", "v").await;
    machine.sim.container_ends("a");
    machine.reconcile("v", 1).await;
    machine.check_nothing_left(1);
    machine.remove("v").await.unwrap();
}

#[tokio::test]
async fn after_the_edge_died_the_next_mount_works() {
    for reconciled in [false, true] {
        let mut machine = Machine::new();
        machine.create("v", &[]).await.unwrap();
        machine.run("a", "v").await;
        machine.run("b", "v").await;
        machine.sim.container_writes("a");
        machine.sim.edge_dies();
        if reconciled {
            machine.reconcile("v", 1).await;
            assert_eq!((machine.references("v").await, machine.sim.counts().1), (2, 0));
        }
        // docker restart a, while b still hangs on the dead device.
        machine.stop("a", "v").await;
        machine.run("a", "v").await;
        machine.sim.container_writes("a");
        assert_eq!(writes(&machine, "v"), 2);
        machine.stop("b", "v").await;
        machine.sim.container_writes("a");
        machine.stop("a", "v").await;
        machine.check_nothing_left(1);
    }
}

#[tokio::test]
async fn a_kernel_device_outlives_ovsd_edge() {
    let mut machine = Machine::new();
    machine.sim.set_nbd(true);
    machine.create("v", &[]).await.unwrap();
    machine.run("a", "v").await;
    machine.sim.edge_dies();
    machine.sim.container_writes("a");
    machine.reconcile("v", 3).await;
    machine.run("b", "v").await;
    machine.sim.container_writes("b");
    machine.sim.container_writes("a");
    assert_eq!((machine.references("v").await, machine.sim.counts()), (2, (1, 1, 1)));
    assert_eq!(writes(&machine, "v"), 3);
    machine.stop("b", "v").await;
    machine.stop("a", "v").await;
    machine.check_nothing_left(1);
}

#[tokio::test]
async fn after_a_kernel_device_was_fenced_the_next_mount_works() {
    let mut machine = Machine::new();
    machine.sim.set_nbd(true);
    machine.create("v", &[]).await.unwrap();
    machine.run("a", "v").await;
    machine.sim.devices_are_fenced();
    machine.reconcile("v", 1).await;
    assert_eq!(machine.sim.counts().1, 0, "taken out of the tree");
    machine.run("b", "v").await;
    machine.sim.container_writes("b");
    machine.stop("a", "v").await;
    machine.sim.container_writes("b");
    machine.stop("b", "v").await;
    machine.check_nothing_left(1);
}

#[tokio::test]
async fn a_volume_keeps_its_kind_of_device_until_its_last_unmount() {
    for (before, after) in [(DeviceKind::Loop, DeviceKind::Nbd), (DeviceKind::Nbd, DeviceKind::Loop)] {
        let mut machine = Machine::new();
        machine.sim.set_nbd(before == DeviceKind::Nbd);
        machine.create("v", &[]).await.unwrap();
        machine.run("a", "v").await;
        machine.sim.set_nbd(after == DeviceKind::Nbd);
        machine.restart();
        machine.run("b", "v").await;
        assert_eq!(machine.sim.kind(), before);
        // Also when only a container's namespace still has it.
        machine.unmount("v", "a").await.unwrap();
        machine.unmount("v", "b").await.unwrap();
        assert_eq!(machine.sim.counts(), (1, 0, 1));
        machine.run("c", "v").await;
        assert_eq!(machine.sim.kind(), before);
        let shown = machine.driver.get(&name("v")).await.unwrap().status.device.unwrap();
        assert_eq!(DeviceKind::of(Path::new(&shown)), before, "{shown}");
        for container in ["a", "b"] {
            machine.sim.container_ends(container);
            machine.containers.remove(container);
        }
        machine.stop("c", "v").await;
        machine.check_nothing_left(1);
        machine.run("d", "v").await;
        assert_eq!(machine.sim.kind(), after);
    }
}

#[tokio::test]
async fn a_file_system_with_errors_is_repaired_first() {
    let mut machine = Machine::new();
    machine.create("v", &[]).await.unwrap();
    machine.run("a", "v").await;
    machine.stop("a", "v").await;
    let mut disk = machine.sim.disk("v");
    if let Disk::FileSystem { has_errors, .. } = &mut disk {
        *has_errors = true;
    }
    machine.sim.set_disk("v", disk);
    machine.run("a", "v").await;
    assert_eq!(machine.sim.world().check_count, 1);
}

#[tokio::test]
async fn open_files_on_the_host_delay_the_unmount() {
    let mut machine = Machine::new();
    machine.create("v", &[]).await.unwrap();
    let path = machine.mount("v", "a").await.unwrap();
    let target = path.parent().unwrap();
    machine.sim.set_busy(target, true);
    machine.unmount("v", "a").await.unwrap();
    assert_eq!(machine.sim.counts(), (1, 1, 1));
    check_error(machine.remove("v").await, "busy");
    machine.sim.set_busy(target, false);
    machine.reconcile("v", 1).await;
    machine.check_nothing_left(1);
}

#[tokio::test]
async fn a_mounted_volume_needs_no_ovsd() {
    let mut machine = Machine::new();
    machine.create("v", &[]).await.unwrap();
    machine.run("a", "v").await;
    machine.sim.set_ovsd_away(true);
    machine.restart();
    machine.run("b", "v").await;
    let shown = machine.driver.get(&name("v")).await.unwrap();
    assert!(
        shown.status.state.contains("does not answer") && shown.mountpoint.ends_with("/data"),
        "{shown:?}"
    );
    assert_eq!(machine.driver.path(&name("v")).await.unwrap(), shown.mountpoint);
    machine.stop("b", "v").await;
    machine.stop("a", "v").await;
    let error = machine.driver.get(&name("v")).await.unwrap_err();
    assert!(matches!(error, DriverError::Ovsd(OvsdError::Unreachable(_))), "{error}");
    assert!(machine.mount("v", "c").await.is_err());
    machine.sim.set_ovsd_away(false);
    machine.check_nothing_left(1);
}

#[tokio::test]
async fn a_reboot_leaves_no_references() {
    let mut machine = Machine::new();
    machine.create("v", &[]).await.unwrap();
    machine.run("a", "v").await;
    let sim = Sim::default();
    std::mem::swap(&mut *sim.world(), &mut *machine.sim.world());
    // The vDisk alone comes back.
    machine.sim.container_ends("a");
    machine.boot = 2;
    machine.restart();
    machine.reconcile("v", 1).await;
    assert_eq!(machine.record_count(), 0);
}

#[tokio::test]
async fn a_vdisk_that_grew_takes_its_file_system_along() {
    let mut machine = Machine::new();
    machine.create("v", &[("size", "1GiB")]).await.unwrap();
    machine.run("a", "v").await;
    let grown = |machine: &Machine, gib: u64| match machine.sim.disk("v") {
        Disk::FileSystem { size_bytes, .. } => assert_eq!(size_bytes, gib << 30),
        other => panic!("{other:?}"),
    };
    machine.sim.change("v", |facts| facts.size_bytes = 2 << 30);
    let uuid = machine.driver.volume(&name("v")).await.unwrap().unwrap().uuid;
    machine.driver.grow(uuid).await.unwrap();
    grown(&machine, 2);
    // The event was missed: the reconciler sees it.
    machine.sim.change("v", |facts| facts.size_bytes = 3 << 30);
    machine.reconcile("v", 1).await;
    grown(&machine, 3);
    machine.stop("a", "v").await;
    // Nobody had it mounted: the next mount does it.
    machine.sim.change("v", |facts| facts.size_bytes = 4 << 30);
    machine.run("a", "v").await;
    grown(&machine, 4);
}

#[tokio::test]
async fn a_mount_whose_caller_went_is_taken_back() {
    let mut machine = Machine::new();
    machine.create("v", &[]).await.unwrap();
    machine.mount("v", "a").await.unwrap();
    machine.driver.mount_abandoned(&name("v"), &id("a")).await;
    machine.check_nothing_left(1);
    machine.run("b", "v").await;
    machine.mount("v", "b").await.unwrap();
    machine.driver.mount_abandoned(&name("v"), &id("b")).await;
    machine.unmount("v", "b").await.unwrap();
    assert_eq!(machine.references("v").await, 1);
}

#[tokio::test]
async fn a_rename_in_ovs_does_not_confuse_who_uses_it() {
    let mut machine = Machine::new();
    machine.create("v", &[]).await.unwrap();
    machine.run("a", "v").await;
    machine.sim.change("v", |facts| facts.name = name("w"));
    machine.run("b", "w").await;
    assert_eq!((machine.references("w").await, machine.sim.counts()), (2, (1, 1, 1)));
    machine.stop("a", "v").await;
    machine.stop("b", "w").await;
    machine.check_nothing_left(1);
    machine.remove("v").await.unwrap();
    assert_eq!(machine.sim.counts().2, 1, "w is another volume");
    machine.remove("w").await.unwrap();
    machine.check_nothing_left(0);
}
