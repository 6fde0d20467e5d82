//! What NBD clients see: a vDisk, or one of its snapshots, as a [`Device`], found by name through [`Door`].
//!
//! ```text
//!  nbd.sock            `POOL/NAME`, `POOL/NAME@SNAPSHOT`
//!  nbd/<uuid>.sock     the same of that vDisk alone, and "" for the vDisk itself
//! ```
//!
//! Every connection holds an attachment from its opening to its end. A device shows the vDisk in whole clusters; its
//! byte-exact size is a matter of files. An engine that says "retry" is asked again for a while before the guest gets
//! an I/O error. Not here: who may attach (`volumes::attach`), the protocol (`ovs-nbd`).

use crate::volumes::{
    Volumes,
    attachments::{Connection, Holder},
};
use bytes::Bytes;
use ovs_api::ProblemKind;
use ovs_cluster::catalogue::VdiskRecord;
use ovs_nbd::{
    Asked, ClientInfo, Device, ExportInfo, Exports, Extent, NbdError, OpenError, ReadPiece, ReadReply,
    ZeroKind,
};
use ovs_units::{ByteCount, ByteOffset, ByteRange, SnapshotId, VdiskId, VdiskPath};
use ovs_volume::{GuestRequest, Vdisk, VolumeError};
use std::{cell::Cell, future::Future, rc::Rc, time::Duration};

/// A read of at least this much asks for holes first, so that they need not travel.
const HOLES_FROM_BYTES: u64 = 128 << 10;
/// Extents of one read at most; past that it is all data.
const HOLES_EXTENTS_MAX: usize = 64;
/// How long an operation that may be retried is retried before the client gets an error.
const RETRY_FOR: Duration = Duration::from_secs(60);
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(50);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(2);
/// Names told to a client that asks for the list, at most.
const LISTED_MAX: usize = 10_000;

/// The names that one listener serves.
pub struct Door {
    volumes: Rc<Volumes>,
    /// Set for a vDisk's own socket.
    only: Option<VdiskId>,
}

/// What a name means now.
struct Found {
    record: VdiskRecord,
    vdisk: Vdisk,
    snapshot: Option<(SnapshotId, ByteCount)>,
}

impl Door {
    /// The common door.
    pub fn to_all(volumes: Rc<Volumes>) -> Door {
        Door { volumes, only: None }
    }

    /// The door of one vDisk.
    pub fn to_one(volumes: Rc<Volumes>, vdisk: VdiskId) -> Door {
        Door { volumes, only: Some(vdisk) }
    }

    async fn find(&self, name: &str) -> Result<Found, OpenError> {
        let unknown = || {
            OpenError::NotFound(format!(
                "there is no export {:?}",
                name.chars().take(300).collect::<String>()
            ))
        };
        let (id, snapshot) = match (self.only, name.is_empty()) {
            (Some(only), true) => (only, None),
            (None, true) => {
                return Err(OpenError::NotFound("the export's name is missing: POOL/NAME".into()));
            }
            (only, false) => {
                let path: VdiskPath = name.parse().map_err(|_| unknown())?;
                let reference = ovs_api::VdiskRef::Name { vpool: path.vpool, name: path.vdisk };
                let id = self.volumes.resolve(&reference).await.map_err(to_open_error)?;
                if only.is_some_and(|only| only != id) {
                    return Err(unknown());
                }
                (id, path.snapshot)
            }
        };
        match snapshot {
            Some(snapshot) => {
                let (vdisk, record, found) =
                    self.volumes.snapshot_named(id, &snapshot).await.map_err(to_open_error)?;
                Ok(Found { record, vdisk, snapshot: Some((found.id, found.size)) })
            }
            None => {
                let vdisk = self.volumes.ensure_open(id).await.map_err(to_open_error)?;
                let record = self.volumes.live_record(id).await.map_err(to_open_error)?.record;
                Ok(Found { record, vdisk, snapshot: None })
            }
        }
    }

    fn describe(&self, record: &VdiskRecord) -> String {
        let vpool = self.volumes.vpool_name(record.vpool);
        vpool.map_or_else(|| record.name.to_string(), |vpool| format!("{vpool}/{}", record.name))
    }
}

impl Exports for Door {
    type Device = VdiskDevice;

    async fn open(&self, name: &str, client: ClientInfo) -> Result<Rc<VdiskDevice>, OpenError> {
        let found = self.find(name).await?;
        let snapshot = found.snapshot.map(|(id, _)| id);
        let (holder, connection) = self.volumes.admit_nbd(&found.record, snapshot, &client)?;
        Ok(Rc::new(VdiskDevice {
            description: self.describe(&found.record),
            volumes: self.volumes.clone(),
            vdisk: found.vdisk,
            snapshot: found.snapshot,
            holder,
            connection,
            is_released: Cell::new(false),
        }))
    }

    async fn info(&self, name: &str) -> Result<ExportInfo, OpenError> {
        let found = self.find(name).await?;
        let read_only = found.snapshot.is_some() || found.record.template.is_some();
        let size = found.snapshot.map_or_else(|| found.vdisk.size(), |(_, size)| size);
        Ok(ExportInfo { size, read_only, multi_conn: true, description: self.describe(&found.record) })
    }

    async fn list(&self) -> Vec<String> {
        if let Some(only) = self.only {
            let record = self.volumes.live_record(only).await;
            return record.map(|stored| vec![self.describe(&stored.record)]).unwrap_or_default();
        }
        self.volumes.export_names(LISTED_MAX).await
    }
}

/// A vDisk or a snapshot of it, as one connection uses it.
pub struct VdiskDevice {
    volumes: Rc<Volumes>,
    vdisk: Vdisk,
    snapshot: Option<(SnapshotId, ByteCount)>,
    description: String,
    holder: Holder,
    connection: Rc<Connection>,
    is_released: Cell<bool>,
}

impl VdiskDevice {
    /// Runs an operation, again while the engine says that it may succeed later.
    async fn patiently<T, F>(&self, operation: impl Fn() -> F) -> Result<T, NbdError>
    where
        F: Future<Output = Result<T, VolumeError>>,
    {
        let start = self.volumes.clock.now();
        let mut pause = RETRY_PAUSE_MIN;
        loop {
            match operation().await {
                Err(VolumeError::Retry(reason))
                    if self.volumes.clock.now().saturating_sub(start) < RETRY_FOR
                        && !self.volumes.is_stopping() =>
                {
                    tracing::debug!(vdisk = %self.vdisk.id(), %reason, "again");
                    self.volumes.clock.sleep(pause).await;
                    pause = (pause * 2).min(RETRY_PAUSE_MAX);
                }
                other => return other.map_err(|error| self.to_nbd_error(error)),
            }
        }
    }

    fn to_nbd_error(&self, error: VolumeError) -> NbdError {
        let text = error.to_string();
        match error {
            VolumeError::NoSpace(_) => NbdError::NoSpace(text),
            VolumeError::Refused(_) => NbdError::Invalid(text),
            VolumeError::Offline(_) | VolumeError::Fenced(_) if self.volumes.is_stopping() => {
                NbdError::Shutdown(text)
            }
            VolumeError::Retry(_)
            | VolumeError::Fenced(_)
            | VolumeError::NotFound(_)
            | VolumeError::Damaged(_)
            | VolumeError::Offline(_) => {
                tracing::warn!(vdisk = %self.vdisk.id(), error = %text, "a client gets an I/O error");
                NbdError::Io(text)
            }
        }
    }

    async fn read_data(&self, range: ByteRange) -> Result<Bytes, NbdError> {
        match self.snapshot {
            None => self.patiently(|| self.vdisk.read(range)).await,
            Some((id, _)) => self.patiently(|| self.vdisk.read_snapshot(id, range)).await,
        }
    }

    async fn extents(&self, range: ByteRange, limit: usize) -> Result<Vec<ovs_volume::Extent>, NbdError> {
        match self.snapshot {
            None => self.patiently(|| self.vdisk.extents(range, limit)).await,
            Some((id, _)) => self.patiently(|| self.vdisk.snapshot_extents(id, range, limit)).await,
        }
    }

    /// Data and holes of a range; one piece of data when there are no holes, or too many.
    async fn read_pieces(&self, range: ByteRange) -> Result<ReadReply, NbdError> {
        let extents = self.extents(range, HOLES_EXTENTS_MAX).await?;
        let covered: u64 = extents.iter().map(|extent| extent.length.0).sum();
        if covered < range.length.0 || extents.iter().all(|extent| extent.allocated) {
            return Ok(ReadReply::Data(self.read_data(range).await?));
        }
        let (mut pieces, mut at) = (Vec::new(), range.start.0);
        for extent in extents {
            let length = extent.length.0.min(range.end().0 - at);
            if length == 0 {
                break;
            }
            if extent.allocated {
                let part = ByteRange::new(ByteOffset(at), ByteCount(length));
                let part = part.ok_or_else(|| NbdError::Invalid("a range past the end".into()))?;
                pieces.push(ReadPiece::Data(self.read_data(part).await?));
            } else {
                pieces.push(ReadPiece::Hole(ByteCount(length)));
            }
            at += length;
        }
        Ok(ReadReply::Pieces(pieces))
    }
}

impl Device for VdiskDevice {
    fn size(&self) -> ByteCount {
        self.snapshot.map_or_else(|| self.vdisk.size(), |(_, size)| size)
    }

    fn read_only(&self) -> bool {
        !self.holder.mode.writes()
    }

    fn description(&self) -> String {
        self.description.clone()
    }

    async fn admit(&self, asked: Asked) -> Result<(), NbdError> {
        if self.snapshot.is_some() {
            return Ok(());
        }
        let request = match asked {
            Asked::Read(range) => GuestRequest::Read(range.length),
            Asked::Write(range) => GuestRequest::Write(range.length),
            Asked::Zero(range) => GuestRequest::Zero(range),
        };
        self.vdisk.admit(request).await.map_err(|error| self.to_nbd_error(error))
    }

    async fn read(&self, range: ByteRange) -> Result<ReadReply, NbdError> {
        if range.length.0 >= HOLES_FROM_BYTES {
            return self.read_pieces(range).await;
        }
        Ok(ReadReply::Data(self.read_data(range).await?))
    }

    async fn write(&self, offset: ByteOffset, data: Bytes, fua: bool) -> Result<(), NbdError> {
        let stable = fua || self.holder.write_through;
        self.patiently(|| self.vdisk.write(offset, data.clone(), stable)).await
    }

    async fn zero(&self, range: ByteRange, fua: bool, _kind: ZeroKind) -> Result<(), NbdError> {
        // Both kinds are changes of the map, always fast; space is never provisioned ahead.
        let stable = fua || self.holder.write_through;
        self.patiently(|| self.vdisk.zero(range, stable)).await
    }

    async fn flush(&self) -> Result<(), NbdError> {
        self.patiently(|| self.vdisk.flush()).await
    }

    async fn cache(&self, _range: ByteRange) -> Result<(), NbdError> {
        Ok(())
    }

    async fn block_status(&self, range: ByteRange, limit: usize) -> Result<Vec<Extent>, NbdError> {
        let extents = self.extents(range, limit).await?;
        Ok(extents
            .into_iter()
            .map(
                |extent| {
                    if extent.allocated { Extent::data(extent.length) } else { Extent::hole(extent.length) }
                },
            )
            .collect())
    }

    async fn closed(&self) {
        self.connection.killed().await;
    }

    async fn released(&self) {
        if !self.is_released.replace(true) {
            self.volumes.release_nbd(self.vdisk.id(), self.holder.uuid, &self.connection).await;
        }
    }
}

fn to_open_error(problem: ovs_api::Problem) -> OpenError {
    match problem.kind() {
        ProblemKind::NotFound => OpenError::NotFound(problem.detail),
        ProblemKind::Damaged => OpenError::Denied(problem.detail),
        _ => OpenError::Unavailable(problem.detail),
    }
}
