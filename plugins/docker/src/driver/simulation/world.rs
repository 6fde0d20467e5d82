//! See the module above.

use crate::{
    filesystem_options::MountOptions,
    host::{Attached, Contents, Device, DeviceKind, FormatPlan, Health, Host, HostError, Unmount},
    options::{Fstype, RootDirectory},
    ovsd::{NewVdisk, Ovsd, OvsdError, Vdisk},
    record::{Record, RecordFiles, Records},
};
use ovs_units::{Name, VdiskId};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

/// What is on a simulated vDisk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disk {
    Blank,
    HalfFormatted,
    FileSystem { fstype: Fstype, writes: u64, has_data: bool, size_bytes: u64, has_errors: bool },
}

#[derive(Debug, Clone)]
struct SimVdisk {
    facts: Vdisk,
    disk: Disk,
    handed_out: bool,
}

#[derive(Debug, Clone)]
struct SimDevice {
    kind: DeviceKind,
    vdisk: VdiskId,
    hold_count: usize,
    /// ovsd-edge keeps it until somebody has opened it.
    is_kept_by_edge: bool,
    is_dead: bool,
}

/// What outlives the plugin.
#[derive(Default)]
pub struct World {
    vdisks: BTreeMap<VdiskId, SimVdisk>,
    trash: Vec<VdiskId>,
    /// By sequence.
    devices: BTreeMap<u64, SimDevice>,
    /// The kernel has NBD devices, and new ones are of that kind.
    has_nbd: bool,
    next_sequence: u64,
    next_vdisk: u128,
    /// The host's namespace.
    mounts: BTreeMap<PathBuf, u64>,
    /// Other namespaces: container, device.
    namespaces: BTreeSet<(String, u64)>,
    /// Targets in which someone has files open.
    busy: BTreeSet<PathBuf>,
    ovsd_is_away: bool,
    steps_left: Option<u64>,
    is_killed: bool,
    /// How often the plugin died.
    pub kill_count: u64,
    /// What every formatted volume saw.
    pub format_count: u64,
    pub check_count: u64,
}

/// A handle on the world; also the plugin's host and ovsd.
#[derive(Clone, Default)]
pub struct Sim(Arc<Mutex<World>>);

pub struct SimHold(Sim, u64);

impl Drop for SimHold {
    fn drop(&mut self) {
        let mut world = self.0.world();
        if let Some(device) = world.devices.get_mut(&self.1) {
            device.hold_count -= 1;
        }
        world.collect();
    }
}

const KILLED: &str = "killed";

impl World {
    fn step(&mut self) -> Result<(), HostError> {
        if self.is_killed || self.steps_left == Some(0) {
            self.kill_count += u64::from(!self.is_killed);
            self.is_killed = true;
            return Err(HostError::Failed(KILLED.to_owned()));
        }
        self.steps_left = self.steps_left.map(|left| left - 1);
        Ok(())
    }

    /// Devices go with their last user.
    fn collect(&mut self) {
        let (mounts, namespaces) = (&self.mounts, &self.namespaces);
        self.devices.retain(|sequence, device| {
            device.hold_count > 0
                || device.is_kept_by_edge
                || mounts.values().any(|mounted| mounted == sequence)
                || namespaces.iter().any(|(_, mounted)| mounted == sequence)
        });
        for vdisk in self.vdisks.keys() {
            let living =
                self.devices.values().filter(|device| device.vdisk == *vdisk && !device.is_dead).count();
            assert!(living <= 1, "{living} living devices over one vDisk");
        }
    }

    fn device(&self, sequence: u64) -> Device {
        let kind = self.devices.get(&sequence).map_or(DeviceKind::Loop, |device| device.kind);
        let name = if kind == DeviceKind::Nbd { "nbd" } else { "loop" };
        Device { path: format!("/dev/{name}{sequence}").into(), sequence }
    }

    fn is_mounted(&self, sequence: u64) -> bool {
        self.mounts.values().any(|mounted| *mounted == sequence)
            || self.namespaces.iter().any(|(_, mounted)| *mounted == sequence)
    }

    fn vdisk_below(&mut self, device: &Device) -> Result<&mut SimVdisk, HostError> {
        let below = self.devices.get(&device.sequence).filter(|below| !below.is_dead);
        let vdisk = below.ok_or_else(|| HostError::Failed("I/O error".to_owned()))?.vdisk;
        Ok(self.vdisks.get_mut(&vdisk).expect("the vDisk below a device"))
    }
}

impl Sim {
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The plugin dies after so many steps from now.
    pub fn kill_after(&self, steps: Option<u64>) {
        let mut world = self.world();
        world.steps_left = steps;
        world.is_killed = false;
    }

    pub fn is_killed(&self) -> bool {
        self.world().is_killed
    }

    /// One effect between two steps at which the plugin may die.
    fn act<T>(&self, effect: impl FnOnce(&mut World) -> Result<T, HostError>) -> Result<T, HostError> {
        let mut world = self.world();
        world.step()?;
        let result = effect(&mut world)?;
        world.collect();
        world.step()?;
        Ok(result)
    }

    fn ask<T>(&self, effect: impl FnOnce(&mut World) -> Result<T, OvsdError>) -> Result<T, OvsdError> {
        let away = || OvsdError::Unreachable("away".to_owned());
        let mut world = self.world();
        if world.ovsd_is_away {
            return Err(away());
        }
        world.step().map_err(|_| away())?;
        let result = effect(&mut world)?;
        world.step().map_err(|_| away())?;
        Ok(result)
    }

    pub fn set_ovsd_away(&self, away: bool) {
        self.world().ovsd_is_away = away;
    }

    /// ovsd-edge dies and is started again: files with their loop devices are gone, what the kernel speaks to ovsd itself
    /// goes on.
    pub fn edge_dies(&self) {
        let mut world = self.world();
        for device in world.devices.values_mut() {
            device.is_dead |= device.kind == DeviceKind::Loop;
            device.is_kept_by_edge = false;
        }
        world.collect();
    }

    /// `ovs vdisk detach --force`.
    pub fn devices_are_fenced(&self) {
        for device in self.world().devices.values_mut() {
            device.is_dead = true;
        }
    }

    /// From now on new devices are NBD devices, or loop devices again.
    pub fn set_nbd(&self, has_nbd: bool) {
        self.world().has_nbd = has_nbd;
    }

    /// The path of the only device, without its number.
    pub fn kind(&self) -> DeviceKind {
        let world = self.world();
        assert_eq!(world.devices.len(), 1, "devices");
        world.devices.values().next().expect("a device").kind
    }

    pub fn set_busy(&self, target: &Path, busy: bool) {
        let mut world = self.world();
        match busy {
            true => world.busy.insert(target.to_owned()),
            false => world.busy.remove(target),
        };
    }

    /// A container starts with the volume that is mounted there.
    pub fn container_starts(&self, container: &str, target: &Path) {
        let mut world = self.world();
        let sequence = *world.mounts.get(target).expect("a container starts on a mounted volume");
        let vdisk = {
            let device = world.device(sequence);
            world.vdisk_below(&device).expect("living")
        };
        vdisk.handed_out = true;
        assert!(matches!(vdisk.disk, Disk::FileSystem { has_data: true, .. }), "{:?}", vdisk.disk);
        world.namespaces.insert((container.to_owned(), sequence));
    }

    pub fn container_ends(&self, container: &str) {
        let mut world = self.world();
        world.namespaces.retain(|(name, _)| name != container);
        world.collect();
    }

    /// The container writes to its volume.
    pub fn container_writes(&self, container: &str) {
        let mut world = self.world();
        let found =
            world.namespaces.iter().find(|(name, _)| name == container).map(|(_, sequence)| *sequence);
        let device = world.device(found.expect("a running container"));
        match &mut world.vdisk_below(&device).expect("living").disk {
            Disk::FileSystem { writes, .. } => *writes += 1,
            other => panic!("writing to {other:?}"),
        }
    }

    pub fn disk(&self, name: &str) -> Disk {
        let world = self.world();
        world.vdisks.values().find(|vdisk| vdisk.facts.name.as_str() == name).expect("a vDisk").disk.clone()
    }

    pub fn set_disk(&self, name: &str, disk: Disk) {
        let mut world = self.world();
        world.vdisks.values_mut().find(|vdisk| vdisk.facts.name.as_str() == name).expect("a vDisk").disk =
            disk;
    }

    pub fn change(&self, name: &str, change: impl FnOnce(&mut Vdisk)) {
        let mut world = self.world();
        change(
            &mut world
                .vdisks
                .values_mut()
                .find(|vdisk| vdisk.facts.name.as_str() == name)
                .expect("a vDisk")
                .facts,
        );
    }

    /// Devices, mounts of the host, vDisks.
    pub fn counts(&self) -> (usize, usize, usize) {
        let world = self.world();
        (world.devices.len(), world.mounts.len(), world.vdisks.len())
    }

    fn find(&self, matches: impl Fn(&Vdisk) -> bool) -> Result<Vec<Vdisk>, OvsdError> {
        self.ask(|world| {
            Ok(world
                .vdisks
                .values()
                .map(|vdisk| &vdisk.facts)
                .filter(|facts| matches(facts))
                .cloned()
                .collect())
        })
    }
}

impl Ovsd for Sim {
    async fn volumes_named(&self, name: &Name) -> Result<Vec<Vdisk>, OvsdError> {
        self.find(|facts| facts.is_volume() && facts.name == *name)
    }

    async fn volumes(&self) -> Result<Vec<Vdisk>, OvsdError> {
        self.find(Vdisk::is_volume)
    }

    async fn vdisk(&self, uuid: VdiskId) -> Result<Vdisk, OvsdError> {
        self.find(|facts| facts.uuid == uuid)?.pop().ok_or_else(|| OvsdError::NotFound(uuid.to_string()))
    }

    async fn vdisk_named(&self, vpool: &Name, name: &Name) -> Result<Vdisk, OvsdError> {
        let found = self.find(|facts| facts.vpool == *vpool && facts.name == *name)?.pop();
        found.ok_or_else(|| OvsdError::NotFound(name.to_string()))
    }

    async fn create(&self, new: &NewVdisk) -> Result<Vdisk, OvsdError> {
        self.ask(|world| {
            let taken = |vdisk: &&SimVdisk| vdisk.facts.vpool == new.vpool && vdisk.facts.name == new.name;
            if world.vdisks.values().any(|vdisk| taken(&vdisk)) {
                return Err(OvsdError::Exists(new.name.to_string()));
            }
            world.next_vdisk += 1;
            let uuid = VdiskId(uuid::Uuid::from_u128(world.next_vdisk));
            let source = new.origin.as_ref().map(|(uuid, _)| world.vdisks[uuid].clone());
            let facts = Vdisk {
                uuid,
                vpool: new.vpool.clone(),
                name: new.name.clone(),
                size_bytes: new
                    .size_bytes
                    .or(source.as_ref().map(|source| source.facts.size_bytes))
                    .expect("a size"),
                allocated_bytes: 0,
                is_template: false,
                snapshot_count: 0,
                state: "ok".to_owned(),
                created_at: "2026-11-20T10:00:00Z".to_owned(),
                file: format!("/mnt/ovs/{}/{}.raw", new.vpool, new.name).into(),
                labels: new.labels.clone(),
            };
            let disk = source.map_or(Disk::Blank, |source| source.disk);
            world.vdisks.insert(uuid, SimVdisk { facts: facts.clone(), disk, handed_out: false });
            Ok(facts)
        })
    }

    async fn set_labels(&self, uuid: VdiskId, labels: &[(&str, &str)]) -> Result<(), OvsdError> {
        self.ask(|world| {
            let facts = &mut world.vdisks.get_mut(&uuid).expect("a vDisk").facts;
            facts.labels.extend(labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
            Ok(())
        })
    }

    async fn delete(&self, uuid: VdiskId) -> Result<(), OvsdError> {
        self.ask(|world| {
            if world.devices.values().any(|device| device.vdisk == uuid && !device.is_dead) {
                return Err(OvsdError::InUse("attached".to_owned()));
            }
            if world.vdisks.remove(&uuid).is_some() {
                world.trash.push(uuid);
            }
            Ok(())
        })
    }
}

impl Host for Sim {
    type Hold = SimHold;

    async fn inspect(&self, file: &Path, size_bytes: u64) -> Result<Contents, HostError> {
        self.act(|world| {
            let vdisk = world.vdisks.values().find(|vdisk| vdisk.facts.file == file).expect("a file");
            assert_eq!(vdisk.facts.size_bytes, size_bytes);
            Ok(match vdisk.disk {
                Disk::Blank => Contents::Blank,
                Disk::HalfFormatted => Contents::Other,
                Disk::FileSystem { fstype, size_bytes, has_errors, .. } => {
                    Contents::FileSystem { fstype, size_bytes, block_size_bytes: 4096, has_errors }
                }
            })
        })
    }

    async fn attach(
        &self,
        file: &Path,
        vdisk: VdiskId,
        _known: Option<&Device>,
        _contents: &Contents,
    ) -> Result<Attached<SimHold>, HostError> {
        let sim = self.clone();
        self.act(|world| {
            assert_eq!(world.vdisks[&vdisk].facts.file, file);
            let found = world.devices.iter().find(|(_, device)| device.vdisk == vdisk && !device.is_dead);
            let found = found.map(|(sequence, _)| *sequence);
            let sequence = found.unwrap_or_else(|| {
                world.next_sequence += 1;
                let kind = if world.has_nbd { DeviceKind::Nbd } else { DeviceKind::Loop };
                let (hold_count, is_kept_by_edge, is_dead) = (0, false, false);
                let new = SimDevice { kind, vdisk, hold_count, is_kept_by_edge, is_dead };
                world.devices.insert(world.next_sequence, new);
                world.next_sequence
            });
            let device = world.devices.get_mut(&sequence).expect("just found");
            match device.kind {
                DeviceKind::Loop => device.hold_count += 1,
                DeviceKind::Nbd => device.is_kept_by_edge = true,
            }
            Ok((sequence, found.is_some()))
        })
        .and_then(|(sequence, was_there)| {
            // Between ovsd-edge's answer and the open the plugin may die; the device stays for a while.
            self.act(|world| {
                let device = world.devices.get_mut(&sequence).expect("kept");
                if std::mem::take(&mut device.is_kept_by_edge) {
                    device.hold_count += 1;
                }
                Ok((world.device(sequence), was_there))
            })
        })
        .map(|(device, was_there)| {
            let hold = SimHold(sim, device.sequence);
            Attached { device, was_there, hold }
        })
        .inspect_err(|_| {
            // A descriptor that was opened closes with the process.
            let mut world = self.world();
            for device in world.devices.values_mut().filter(|device| device.vdisk == vdisk) {
                device.hold_count = 0;
            }
            world.collect();
        })
    }

    async fn is_attached(&self, device: &Device) -> bool {
        self.world().devices.contains_key(&device.sequence)
    }

    async fn health(&self, device: &Device, _file: &Path) -> Health {
        match self.world().devices.get(&device.sequence) {
            Some(device) if !device.is_dead => Health::Alive,
            _ => Health::Dead,
        }
    }

    async fn format(&self, device: &Device, plan: &FormatPlan) -> Result<(), HostError> {
        self.act(|world| {
            assert!(!world.is_mounted(device.sequence), "mkfs on a mounted device");
            world.format_count += 1;
            let vdisk = world.vdisk_below(device)?;
            assert!(!vdisk.handed_out, "a volume with data was formatted");
            vdisk.disk = Disk::HalfFormatted;
            Ok(())
        })?;
        self.act(|world| {
            let vdisk = world.vdisk_below(device)?;
            let size_bytes = vdisk.facts.size_bytes;
            let fstype = plan.fstype;
            vdisk.disk =
                Disk::FileSystem { fstype, writes: 0, has_data: false, size_bytes, has_errors: false };
            Ok(())
        })
    }

    async fn check(&self, device: &Device, _fstype: Fstype) -> Result<(), HostError> {
        self.act(|world| {
            assert!(!world.is_mounted(device.sequence), "fsck on a mounted device");
            world.check_count += 1;
            if let Disk::FileSystem { has_errors, .. } = &mut world.vdisk_below(device)?.disk {
                *has_errors = false;
            }
            Ok(())
        })
    }

    async fn mount(
        &self,
        device: &Device,
        target: &Path,
        fstype: Fstype,
        _options: &MountOptions,
    ) -> Result<(), HostError> {
        self.act(|world| {
            match world.vdisk_below(device)?.disk {
                Disk::FileSystem { fstype: have, .. } if have == fstype => {}
                _ => return Err(HostError::Failed("wrong fs type".to_owned())),
            }
            assert_eq!(world.mounts.insert(target.to_owned(), device.sequence), None, "mounted over a mount");
            Ok(())
        })
    }

    async fn prepare(
        &self,
        target: &Path,
        directory: &Path,
        _root: &RootDirectory,
        make: bool,
    ) -> Result<(), HostError> {
        self.act(|world| {
            let sequence = world.mounts[target];
            let device = world.device(sequence);
            match &mut world.vdisk_below(&device)?.disk {
                Disk::FileSystem { has_data, .. } => {
                    *has_data |= make;
                    assert!(*has_data || directory == target);
                    Ok(())
                }
                other => panic!("preparing {other:?}"),
            }
        })
    }

    async fn unmount(&self, target: &Path, how: Unmount) -> Result<(), HostError> {
        self.act(|world| {
            if how == Unmount::Flush && world.busy.contains(target) && world.mounts.contains_key(target) {
                return Err(HostError::Busy("busy".to_owned()));
            }
            world.mounts.remove(target);
            Ok(())
        })
    }

    async fn mounted(&self, target: &Path) -> Result<Option<Device>, HostError> {
        let mut world = self.world();
        world.step()?;
        Ok(world.mounts.get(target).map(|sequence| world.device(*sequence)))
    }

    async fn mounts_below(&self, directory: &Path) -> Result<Vec<PathBuf>, HostError> {
        let world = self.world();
        Ok(world.mounts.keys().filter(|target| target.parent() == Some(directory)).cloned().collect())
    }

    async fn is_used_elsewhere(&self, device: &Device, _target: &Path) -> bool {
        self.world().namespaces.iter().any(|(_, sequence)| *sequence == device.sequence)
    }

    async fn grow_unmounted(&self, device: &Device, _contents: &Contents) -> Result<(), HostError> {
        let world = self.world();
        assert!(!world.is_mounted(device.sequence), "resize2fs without the kernel on a mounted device");
        Ok(())
    }

    async fn grow(
        &self,
        device: &Device,
        _file: &Path,
        size_bytes: u64,
        _target: &Path,
    ) -> Result<(), HostError> {
        self.act(|world| {
            if let Disk::FileSystem { size_bytes: have, .. } = &mut world.vdisk_below(device)?.disk {
                *have = size_bytes;
            }
            Ok(())
        })
    }
}

/// Records on a real disk, written by a plugin that may die before or after.
pub struct SimRecords {
    sim: Sim,
    files: RecordFiles,
}

impl SimRecords {
    pub fn new(sim: Sim, directory: &Path, boot_id: &str) -> SimRecords {
        SimRecords { sim, files: RecordFiles::new(directory.to_owned(), boot_id).expect("a directory") }
    }

    fn step(&self) -> io::Result<()> {
        self.sim.world().step().map_err(io::Error::other)
    }
}

impl Records for SimRecords {
    fn load(&self) -> io::Result<Vec<Record>> {
        self.files.load()
    }

    fn save(&self, record: &Record) -> io::Result<()> {
        self.step()?;
        self.files.save(record)?;
        self.step()
    }

    fn remove(&self, vdisk: VdiskId) -> io::Result<()> {
        self.step()?;
        self.files.remove(vdisk)?;
        self.step()
    }
}
