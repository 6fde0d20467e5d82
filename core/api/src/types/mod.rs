//! What goes over the wire, one file per resource.
//!
//! Sizes are bytes in integers, times RFC 3339 strings, names [`Name`](ovs_units::Name)s. Requests refuse members they
//! do not know; replies may gain members, so that an older client reads a newer service.

mod attachment;
mod backend;
mod cache;
mod device;
mod event;
mod export;
mod label;
mod limits;
mod page;
mod preset;
mod secret;
mod snapshot;
mod status;
mod task;
mod time;
mod trash;
mod vdisk;
mod vmachine;
mod vpool;

pub use attachment::{
    Attachment, AttachmentMode, AttachmentQuery, CreateAttachment, DeleteAttachmentQuery, Door,
};
pub use backend::{
    AddDrive, Backend, BackendDrive, BackendKind, BackendPlan, BackendUpkeep, CreateBackend, DriveDuty,
    PolicyPlan, ProbeResult, RemoteStore, RemoveDriveQuery, SafetyShare, UpkeepPhase, Verification,
};
pub use cache::{CacheSpace, VdiskCachePatch, VdiskCacheStats, VpoolCachePatch};
pub use device::{Device, DeviceList, PutDevice};
pub use event::{Event, EventId, EventKind};
pub use export::{CreateExport, Export, ExportProtocol};
pub use label::{LABEL_COUNT_MAX, LabelSelector, Labels, LabelsPatch};
pub use limits::{LimitsPatch, RatesPatch};
pub use page::{Cursor, LIMIT_DEFAULT, LIMIT_MAX, ListQuery, Page};
pub use preset::{Compression, CreatePreset, Encryption, Policy, Preset, RotatePreset};
pub use secret::SecretReference;
pub use snapshot::{CreateSnapshot, GetSnapshotQuery, Snapshot, SnapshotWait};
pub use status::{
    Alarm, AlarmKind, BufferSpace, Host, HostState, PROTOCOL, ProtocolRange, ServiceState, Status,
};
pub use task::{GetTaskQuery, Task, TaskId, TaskProgress, TaskQuery, TaskState};
pub use time::Timestamp;
pub use trash::{RestoreTrash, TrashEntry, TrashQuery};
pub use vdisk::{
    Base, CreateVdisk, DeleteVdiskQuery, OnFull, PatchVdisk, RollbackVdisk, Source, Vdisk, VdiskQuery,
    VdiskState, VdiskStats,
};
pub use vmachine::{CloneVmachine, CreateVmachine, RollbackVmachine, SnapshotVmachine, Vmachine};
pub use vpool::{CreateVpool, DeleteVpoolQuery, PatchVpool, RecoverVpool, Vpool, VpoolState};

use crate::Problem;

/// Something a client sends: a body or a query. Its form is checked by its type, the rest here.
pub trait Request {
    /// Refuses what the types let through, naming the field, what was given and what is allowed.
    fn check(&self) -> Result<(), Problem> {
        Ok(())
    }
}

/// Refuses text that is too long, or that would garble a terminal or a log.
pub(crate) fn check_text(field: &str, text: &str, length_bytes_max: usize) -> Result<(), Problem> {
    if text.len() <= length_bytes_max && !text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') {
        return Ok(());
    }
    Err(Problem::field(
        field,
        text,
        &format!("at most {length_bytes_max} bytes of text without control characters"),
    ))
}

/// The longest description of an object.
pub(crate) const DESCRIPTION_BYTES_MAX: usize = 4096;
