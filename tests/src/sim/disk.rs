//! A vDisk as it should be, and the one of this life.

use super::Failure;
use crate::{Content, History, history::Cut};
use bytes::Bytes;
use ovs_units::{ByteCount, ByteOffset, ByteRange, CLUSTER_SIZE_BYTES, Name, SnapshotId, VdiskId};
use ovs_volume::{Vdisk, VolumeError};
use std::cell::{Cell, RefCell};

/// Read at once when everything is compared.
const READ_BYTES: u64 = 512 << 10;
const ZEROS: [u8; CLUSTER_SIZE_BYTES as usize] = [0; CLUSTER_SIZE_BYTES as usize];

pub(super) struct Disk {
    pub(super) id: VdiskId,
    pub(super) base: Option<(VdiskId, SnapshotId)>,
    pub(super) properties: RefCell<String>,
    /// Others that were asked for and not answered: it may have any of them.
    pub(super) properties_asked: RefCell<Vec<String>>,
    pub(super) history: RefCell<History>,
    pub(super) snapshots: RefCell<Vec<Snapshot>>,
    /// Of this life.
    pub(super) vdisk: RefCell<Option<Vdisk>>,
    /// While it is above 0 clients begin nothing.
    pub(super) pauses: Cell<u32>,
    /// Clients that are doing something.
    pub(super) busy: Cell<u32>,
}

#[derive(Clone)]
pub(super) struct Snapshot {
    pub(super) id: SnapshotId,
    pub(super) name: Name,
    pub(super) content: Content,
    /// What was acknowledged before it.
    pub(super) least: Cut,
    /// Its data has left this host.
    pub(super) is_on_backend: bool,
    /// Some of it may have been lost with the write buffer. That this was accepted is lost with the next one, unless more of
    /// the vDisk has left since.
    pub(super) was_cut: bool,
}

impl Disk {
    pub(super) fn new(
        id: VdiskId,
        content: Content,
        base: Option<(VdiskId, SnapshotId)>,
        properties: String,
        clients: usize,
    ) -> Disk {
        Disk {
            id,
            base,
            properties: RefCell::new(properties),
            properties_asked: RefCell::default(),
            history: RefCell::new(History::new(content, clients)),
            snapshots: RefCell::default(),
            vdisk: RefCell::default(),
            pauses: Cell::new(0),
            busy: Cell::new(0),
        }
    }

    /// As it should be now, not open.
    pub(super) fn fork(&self) -> Disk {
        Disk {
            id: self.id,
            base: self.base,
            properties: self.properties.clone(),
            properties_asked: self.properties_asked.clone(),
            history: self.history.clone(),
            snapshots: self.snapshots.clone(),
            vdisk: RefCell::default(),
            pauses: Cell::new(0),
            busy: Cell::new(0),
        }
    }

    /// Everything that it and these snapshots hold is on the backend.
    pub(super) fn is_on_backend(&self, cut: &Cut, snapshots: &[SnapshotId]) {
        self.history.borrow_mut().is_on_backend(cut);
        let mut all = self.snapshots.borrow_mut();
        all.iter_mut()
            .filter(|known| snapshots.contains(&known.id))
            .for_each(|known| known.is_on_backend = true);
    }

    /// A rollback or another size makes it this, once everything before that is on the backend.
    pub(super) fn becomes(&self, content: Content) {
        self.history.borrow_mut().settle(content);
        self.snapshots.borrow_mut().iter_mut().for_each(|known| known.is_on_backend = true);
    }

    pub(super) fn snapshot_ids(&self) -> Vec<SnapshotId> {
        self.snapshots.borrow().iter().map(|snapshot| snapshot.id).collect()
    }

    /// It has these, or those that were asked for, and whatever it has stays.
    pub(super) fn settle_properties(&self, found: &[u8]) {
        let asked = self.properties_asked.take();
        if let Some(asked) = asked.into_iter().find(|asked| asked.as_bytes() == found) {
            *self.properties.borrow_mut() = asked;
        }
    }

    pub(super) fn size(&self) -> ByteCount {
        self.history.borrow().now().size()
    }

    /// The vDisk of this life.
    pub(super) fn open(&self) -> Result<Vdisk, VolumeError> {
        let vdisk = self.vdisk.borrow().clone();
        vdisk.ok_or_else(|| VolumeError::Offline("it is not open in this life".to_owned()))
    }

    /// The bytes that are a client's own.
    pub(super) fn region(&self, client: usize) -> ByteRange {
        let history = self.history.borrow();
        let (clusters, clients) =
            (history.now().size().0 / CLUSTER_SIZE_BYTES, history.client_count() as u64);
        let start = clusters * client as u64 / clients;
        let end = clusters * (client as u64 + 1) / clients;
        ByteRange {
            start: ByteOffset(start * CLUSTER_SIZE_BYTES),
            length: ByteCount((end - start) * CLUSTER_SIZE_BYTES),
        }
    }

    /// All of the vDisk, or of a snapshot of that size.
    pub(super) async fn read_all(
        &self,
        snapshot: Option<SnapshotId>,
        size: ByteCount,
    ) -> Result<Content, VolumeError> {
        let vdisk = self.open()?;
        let mut content = Content::new(size);
        let mut at = 0;
        while at < size.0 {
            let length = READ_BYTES.min(size.0 - at);
            let range = ByteRange { start: ByteOffset(at), length: ByteCount(length) };
            let bytes = match snapshot {
                None => vdisk.read(range).await?,
                Some(id) => vdisk.read_snapshot(id, range).await?,
            };
            for (number, cluster) in bytes.chunks(CLUSTER_SIZE_BYTES as usize).enumerate() {
                if *cluster != ZEROS[..cluster.len()] {
                    content.write(ByteOffset(at + number as u64 * CLUSTER_SIZE_BYTES), cluster);
                }
            }
            at += length;
        }
        Ok(content)
    }

    /// Properties, size, snapshots and their contents, as they should be.
    pub(super) async fn verify_snapshots(&self) -> Result<(), Failure> {
        let vdisk = self.open().map_err(|error| error.to_string())?;
        let found: Vec<_> = vdisk.snapshots().into_iter().filter(|info| !info.hidden).collect();
        let expected = self.snapshots.borrow().clone();
        let is_same = found.len() == expected.len()
            && found.iter().zip(&expected).all(|(info, snapshot)| {
                info.id == snapshot.id && info.name == snapshot.name && info.size == snapshot.content.size()
            });
        if !is_same {
            let expected: Vec<_> = expected.iter().map(|snapshot| &snapshot.name).collect();
            return Err(format!("vDisk {}: snapshots {found:?}, not {expected:?}", self.id));
        }
        for snapshot in &expected {
            let found = self.read_all(Some(snapshot.id), snapshot.content.size()).await;
            let found = found.map_err(|error| {
                format!("vDisk {}: snapshot {} cannot be read: {error}", self.id, snapshot.name)
            })?;
            if let Some(cluster) = found.difference(&snapshot.content, |_| false) {
                let name = &snapshot.name;
                return Err(format!("vDisk {}: snapshot {name}: cluster {} changed", self.id, cluster.0));
            }
        }
        if vdisk.properties() != self.properties.borrow().as_bytes() {
            let (found, expected) = (vdisk.properties(), self.properties.borrow());
            return Err(format!("vDisk {}: properties {found:?}, not {expected}", self.id));
        }
        Ok(())
    }
}

/// Contents of one's own: of that length, like no other's.
pub(super) fn new_data(number: u64, length: u64) -> Bytes {
    let mut bytes = Vec::with_capacity(length as usize + 8);
    for word in 0..length.div_ceil(8) {
        bytes.extend_from_slice(&crate::random::mix(number << 32 | word).to_le_bytes());
    }
    bytes.truncate(length as usize);
    bytes.into()
}
