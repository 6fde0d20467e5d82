//! The table of operations: the one place that says what the RPC can do.
//!
//! ```text
//!              ┌─▶ OPERATIONS ─▶ the OpenAPI document
//!  the table ──┼─▶ the router of ovsd: matches, parses, checks, calls `Core::<id>`
//!              └─▶ the client: one typed method per operation
//! ```
//!
//! A row is `id: METHOD "path" path(name: Type, …) query(Type) body(Type) -> Reply, may [problem kinds];`. All
//! operations may also answer `invalid`, `unavailable` and `internal`. Rows under `later` are resources of the model
//! that nobody has built yet: the router answers 501 with the row's reason.

use crate::{ProblemKind, Reply, ReplyDoc};
use schemars::{JsonSchema, Schema, SchemaGenerator};

/// Gives the table to a macro.
#[macro_export]
macro_rules! for_each_operation {
    ($consumer:ident) => {
        $consumer! {
            served {
                /// How this ovsd is, and which versions of the RPC it serves.
                get_status: GET "/v1/status" -> Status, may [];
                /// The hosts that run ovsd.
                list_hosts: GET "/v1/hosts" query(ListQuery) -> Page<Host>, may [];

                /// Makes a vPool.
                create_vpool: POST "/v1/vpools" body(CreateVpool) -> Created<Vpool>, may [NotFound, Exists, InUse, Conflict, NoSpace];
                /// The vPools, by name.
                list_vpools: GET "/v1/vpools" query(ListQuery) -> Page<Vpool>, may [];
                /// One vPool.
                get_vpool: GET "/v1/vpools/{vpool}" path(vpool: Name) -> Vpool, may [NotFound];
                /// Changes a vPool's settings.
                update_vpool: PATCH "/v1/vpools/{vpool}" path(vpool: Name) body(PatchVpool) -> Vpool,
                    may [NotFound, PreconditionFailed];
                /// Deletes a vPool without vDisks, and its backend with its objects.
                delete_vpool: DELETE "/v1/vpools/{vpool}" path(vpool: Name) query(DeleteVpoolQuery) -> NoContent,
                    may [NotFound, InUse, PreconditionFailed];
                /// Compares a vPool with its backend and takes in again what is missing here. A task `vpool.recover`.
                recover_vpool: POST "/v1/vpools/{vpool}/recover" path(vpool: Name) -> Accepted<Task>,
                    may [NotFound, Conflict, PreconditionFailed];
                /// Rebuilds a vPool whose registry is lost out of its backend alone. A task `vpool.recover`.
                recover_lost_vpool: POST "/v1/vpools/recover" body(RecoverVpool) -> Accepted<Task>, may [Exists, NotFound, Damaged];

                /// Makes a vDisk: empty, a clone of a vDisk or snapshot, or a child of a template.
                create_vdisk: POST "/v1/vdisks" body(CreateVdisk) -> Created<Vdisk>,
                    may [NotFound, Conflict, Exists, NoSpace, Offline, Damaged];
                /// The vDisks, by vPool and name.
                list_vdisks: GET "/v1/vdisks" query(VdiskQuery) -> Page<Vdisk>, may [NotFound];
                /// One vDisk.
                get_vdisk: GET "/v1/vdisks/{vdisk}" path(vdisk: VdiskRef) -> Vdisk, may [NotFound];
                /// Renames, resizes, protects or labels a vDisk.
                update_vdisk: PATCH "/v1/vdisks/{vdisk}" path(vdisk: VdiskRef) body(PatchVdisk) -> Vdisk,
                    may [NotFound, Conflict, Exists, InUse, PreconditionFailed, NoSpace, Offline, Damaged];
                /// Deletes a vDisk, with its snapshots: to the trash, or for ever with `purge`.
                delete_vdisk: DELETE "/v1/vdisks/{vdisk}" path(vdisk: VdiskRef) query(DeleteVdiskQuery) -> NoContent,
                    may [NotFound, InUse, Protected, PreconditionFailed];
                /// Puts a vDisk back to one of its snapshots.
                rollback_vdisk: POST "/v1/vdisks/{vdisk}/rollback" path(vdisk: VdiskRef) body(RollbackVdisk) -> Vdisk,
                    may [NotFound, Conflict, InUse, PreconditionFailed, NoSpace, Offline, Damaged];
                /// Freezes a vDisk: from now on it only has children.
                set_template: POST "/v1/vdisks/{vdisk}/template" path(vdisk: VdiskRef) -> Vdisk,
                    may [NotFound, Conflict, InUse, PreconditionFailed, NoSpace, Offline, Damaged];
                /// Serves a vDisk that is damaged, or that stayed offline since the write buffer failed, as it is: what it
                /// has lost is accepted.
                accept_vdisk_loss: POST "/v1/vdisks/{vdisk}/accept-loss" path(vdisk: VdiskRef) -> Vdisk,
                    may [NotFound, Conflict, PreconditionFailed, Offline];
                /// Gives back what nobody needs any more of what a vDisk has on its backend. Happens by itself where that is
                /// much. A task `vdisk.scrub`.
                scrub_vdisk: POST "/v1/vdisks/{vdisk}/scrub" path(vdisk: VdiskRef) -> Accepted<Task>, may [NotFound, Offline, Damaged];
                /// Counters of a vDisk.
                get_vdisk_stats: GET "/v1/vdisks/{vdisk}/stats" path(vdisk: VdiskRef) -> VdiskStats, may [NotFound, Offline];

                /// Takes a snapshot, as durable as a flush when this returns.
                create_snapshot: POST "/v1/vdisks/{vdisk}/snapshots" path(vdisk: VdiskRef) body(CreateSnapshot)
                    -> Created<Snapshot>, may [NotFound, Conflict, Exists, PreconditionFailed, NoSpace, Offline, Damaged];
                /// A vDisk's snapshots, the oldest first.
                list_snapshots: GET "/v1/vdisks/{vdisk}/snapshots" path(vdisk: VdiskRef) query(ListQuery) -> Page<Snapshot>,
                    may [NotFound];
                /// One snapshot; can wait until all of it is on the backend.
                get_snapshot: GET "/v1/vdisks/{vdisk}/snapshots/{snapshot}" path(vdisk: VdiskRef, snapshot: SnapshotRef)
                    query(GetSnapshotQuery) -> Snapshot, may [NotFound, Offline];
                /// Deletes a snapshot; with clones it is hidden until the last of them goes.
                delete_snapshot: DELETE "/v1/vdisks/{vdisk}/snapshots/{snapshot}"
                    path(vdisk: VdiskRef, snapshot: SnapshotRef) -> NoContent,
                    may [NotFound, Conflict, InUse, PreconditionFailed, Offline];

                /// Attaches a client to a vDisk, or gives the attachment that it has a new generation.
                create_attachment: POST "/v1/attachments" body(CreateAttachment) -> Created<Attachment>,
                    may [NotFound, Conflict, InUse, Offline];
                /// The attachments.
                list_attachments: GET "/v1/attachments" query(AttachmentQuery) -> Page<Attachment>, may [NotFound];
                /// One attachment.
                get_attachment: GET "/v1/attachments/{attachment}" path(attachment: Uuid) -> Attachment, may [NotFound];
                /// Ends an attachment; with `force` its connections are fenced first.
                delete_attachment: DELETE "/v1/attachments/{attachment}" path(attachment: Uuid) query(DeleteAttachmentQuery)
                    -> NoContent, may [NotFound, InUse, PreconditionFailed];

                /// Deleted vDisks that can be had back, the oldest first.
                list_trash: GET "/v1/trash" query(TrashQuery) -> Page<TrashEntry>, may [NotFound];
                /// Empties the trash. A task `trash.empty`.
                empty_trash: DELETE "/v1/trash" query(TrashQuery) -> Accepted<Task>, may [NotFound];
                /// Gives a deleted vDisk back.
                restore_trash: POST "/v1/trash/{vdisk}/restore" path(vdisk: VdiskRef) body(RestoreTrash) -> Vdisk,
                    may [NotFound, Conflict, Exists, PreconditionFailed];
                /// Deletes one vDisk in the trash for ever.
                delete_trash: DELETE "/v1/trash/{vdisk}" path(vdisk: VdiskRef) -> NoContent,
                    may [NotFound, Conflict, PreconditionFailed];

                /// Makes a backend: a directory, a store, or a composite of others. A store is tried first.
                create_backend: POST "/v1/backends" body(CreateBackend) -> Created<Backend>,
                    may [NotFound, Exists, InUse, Conflict, NoSpace];
                /// What a composite would come to: capacity, overhead, what can be lost. Makes nothing.
                plan_backend: POST "/v1/backends/plan" body(CreateBackend) -> BackendPlan, may [NotFound, Exists, InUse, Conflict];
                /// The backends, by name.
                list_backends: GET "/v1/backends" query(ListQuery) -> Page<Backend>, may [];
                /// One backend.
                get_backend: GET "/v1/backends/{backend}" path(backend: Name) -> Backend, may [NotFound];
                /// Forgets a backend that no vPool and no other backend uses; what is on it stays.
                delete_backend: DELETE "/v1/backends/{backend}" path(backend: Name) -> NoContent,
                    may [NotFound, InUse, PreconditionFailed];
                /// Makes a backend that nobody uses a drive of a composite, or a drive that is leaving serve again.
                add_drive: POST "/v1/backends/{backend}/drives" path(backend: Name) body(AddDrive) -> Backend,
                    may [NotFound, InUse, Conflict, Offline, Damaged, NoSpace, PreconditionFailed];
                /// Takes a drive out of a composite: what is on it moves to the others first, or is made again where it is lost.
                /// A task `backend.drive.remove`, over when it is none any more; cancelling that ends the wait alone.
                remove_drive: DELETE "/v1/backends/{backend}/drives/{drive}" path(backend: Name, drive: Name)
                    query(RemoveDriveQuery) -> Accepted<Task>, may [NotFound, Conflict, Offline, Damaged, PreconditionFailed];
                /// Reads all fragments on a composite's drives now, from the beginning, as fast as guests allow; what is bad is made
                /// again. A task `backend.verify`; while one goes on, that one. Cancelling it leaves the rest to the usual pace.
                verify_backend: POST "/v1/backends/{backend}/verify" path(backend: Name) -> Accepted<Task>,
                    may [NotFound, Conflict, Offline, Damaged];

                /// Makes a preset.
                create_preset: POST "/v1/presets" body(CreatePreset) -> Created<Preset>, may [Exists, Conflict];
                /// The presets, by name.
                list_presets: GET "/v1/presets" query(ListQuery) -> Page<Preset>, may [];
                /// One preset.
                get_preset: GET "/v1/presets/{preset}" path(preset: Name) -> Preset, may [NotFound];
                /// Keeps the keys of a preset's objects under another key, or adds one for new objects. No object is written again.
                rotate_preset: POST "/v1/presets/{preset}/rotate" path(preset: Name) body(RotatePreset) -> Preset,
                    may [NotFound, Conflict, PreconditionFailed, Damaged];
                /// Deletes a preset that no backend uses.
                delete_preset: DELETE "/v1/presets/{preset}" path(preset: Name) -> NoContent,
                    may [NotFound, InUse, PreconditionFailed];

                /// The tasks, the oldest first.
                list_tasks: GET "/v1/tasks" query(TaskQuery) -> Page<Task>, may [];
                /// One task; can wait until it is over.
                get_task: GET "/v1/tasks/{task}" path(task: TaskId) query(GetTaskQuery) -> Task, may [NotFound];
                /// Asks a task to stop; what it has done stays.
                cancel_task: DELETE "/v1/tasks/{task}" path(task: TaskId) -> Task, may [NotFound, Conflict];
            }
            later {
                /// Exports a vDisk to clients on other machines.
                create_export: POST "/v1/exports" body(CreateExport) -> Created<Export>, may [NotFound, InUse, Conflict]
                    until "exports come with the iSCSI and NFS doors";
                /// The exports.
                list_exports: GET "/v1/exports" query(ListQuery) -> Page<Export>, may []
                    until "exports come with the iSCSI and NFS doors";
                /// One export.
                get_export: GET "/v1/exports/{export}" path(export: Uuid) -> Export, may [NotFound]
                    until "exports come with the iSCSI and NFS doors";
                /// Ends an export.
                delete_export: DELETE "/v1/exports/{export}" path(export: Uuid) -> NoContent, may [NotFound, InUse]
                    until "exports come with the iSCSI and NFS doors";
                /// Makes a vMachine out of vDisks.
                create_vmachine: POST "/v1/vmachines" body(CreateVmachine) -> Created<Vmachine>, may [NotFound, Exists, Conflict]
                    until "vMachines come with consistent snapshots of several vDisks";
                /// The vMachines, by name.
                list_vmachines: GET "/v1/vmachines" query(ListQuery) -> Page<Vmachine>, may []
                    until "vMachines come with consistent snapshots of several vDisks";
                /// One vMachine.
                get_vmachine: GET "/v1/vmachines/{vmachine}" path(vmachine: Name) -> Vmachine, may [NotFound]
                    until "vMachines come with consistent snapshots of several vDisks";
                /// Forgets a vMachine; its vDisks stay.
                delete_vmachine: DELETE "/v1/vmachines/{vmachine}" path(vmachine: Name) -> NoContent, may [NotFound]
                    until "vMachines come with consistent snapshots of several vDisks";
                /// Takes a snapshot of all vDisks at one moment.
                snapshot_vmachine: POST "/v1/vmachines/{vmachine}/snapshots" path(vmachine: Name) body(SnapshotVmachine)
                    -> Page<Snapshot>, may [NotFound, Exists, Conflict]
                    until "vMachines come with consistent snapshots of several vDisks";
                /// Puts all vDisks back to their snapshots of one name.
                rollback_vmachine: POST "/v1/vmachines/{vmachine}/rollback" path(vmachine: Name) body(RollbackVmachine)
                    -> Vmachine, may [NotFound, InUse, Conflict]
                    until "vMachines come with consistent snapshots of several vDisks";
                /// Clones all vDisks.
                clone_vmachine: POST "/v1/vmachines/{vmachine}/clone" path(vmachine: Name) body(CloneVmachine)
                    -> Created<Vmachine>, may [NotFound, Exists, Conflict]
                    until "vMachines come with consistent snapshots of several vDisks";
            }
            streams {
                /// What happens, as server-sent events: `id` is the event's, `event` its kind, `data` an `Event`. The first
                /// is `stream.started`, so that listing after it misses nothing. Goes on after `Last-Event-ID` when given.
                stream_events: GET "/v1/events" -> EventStream, may [Gone];
                /// Counters of this ovsd in the Prometheus text format.
                get_metrics: GET "/metrics" -> MetricsText, may [];
                /// This document.
                get_openapi: GET "/openapi.json" -> OpenApiDocument, may [];
            }
        }
    };
}

/// What an operation does to its resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// Reads.
    GET,
    /// Makes, or acts.
    POST,
    /// Makes, or finds made.
    PUT,
    /// Changes.
    PATCH,
    /// Removes.
    DELETE,
}

impl Method {
    /// As HTTP writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Method::GET => "GET",
            Method::POST => "POST",
            Method::PUT => "PUT",
            Method::PATCH => "PATCH",
            Method::DELETE => "DELETE",
        }
    }
}

/// A type's schema, in the generator's words.
pub type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

fn schema_of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// One row of the table.
#[derive(Debug)]
pub struct Operation {
    /// Its name in code and in the OpenAPI document.
    pub id: &'static str,
    /// What it does.
    pub summary: &'static str,
    /// The HTTP method.
    pub method: Method,
    /// The path, with `{name}` for each path parameter.
    pub path: &'static str,
    /// The path parameters in order.
    pub path_params: &'static [(&'static str, SchemaOf)],
    /// The query, an object whose members are the parameters.
    pub query: Option<SchemaOf>,
    /// The body.
    pub body: Option<SchemaOf>,
    /// What it answers when it succeeds.
    pub replies: fn(&mut SchemaGenerator) -> Vec<ReplyDoc>,
    /// The problems that are its own.
    pub problems: &'static [ProblemKind],
    /// Why it answers 501, if so.
    pub until: Option<&'static str>,
}

impl Operation {
    /// Changes honour `If-Match` with the revision of the object that the path names.
    pub fn takes_if_match(&self) -> bool {
        self.method != Method::GET && !self.path_params.is_empty()
    }

    /// A key makes the same request again, within a day, answer the same again.
    pub fn takes_idempotency_key(&self) -> bool {
        self.method == Method::POST
    }

    /// The stream goes on after an event.
    pub fn takes_last_event_id(&self) -> bool {
        self.id == "stream_events"
    }
}

/// The same with its members in sight: a query's are parameters of their own.
fn members_of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    T::json_schema(generator)
}

macro_rules! optional_query {
    () => {
        None
    };
    ($type:ty) => {
        Some(members_of::<$type>)
    };
}

macro_rules! optional_schema {
    () => {
        None
    };
    ($type:ty) => {
        Some(schema_of::<$type>)
    };
}

macro_rules! optional_text {
    () => {
        None
    };
    ($text:literal) => {
        Some($text)
    };
}

macro_rules! table {
    ($($section:ident {
        $(
            $(#[doc = $doc:literal])+
            $id:ident: $method:ident $path:literal $(path($($param:ident: $Param:ty),+))? $(query($Query:ty))?
                $(body($Body:ty))? -> $Reply:ty, may [$($kind:ident),*] $(until $until:literal)?;
        )*
    })*) => {
        /// Every operation.
        pub static OPERATIONS: &[Operation] = &[$($(Operation {
            id: stringify!($id),
            summary: concat!($($doc),+),
            method: Method::$method,
            path: $path,
            path_params: &[$($((stringify!($param), schema_of::<$Param>)),+)?],
            query: optional_query!($($Query)?),
            body: optional_schema!($($Body)?),
            replies: <$Reply as Reply>::document,
            problems: &[$(ProblemKind::$kind),*],
            until: optional_text!($($until)?),
        }),*),*];
    };
}

use crate::reply::{Accepted, Created, EventStream, MetricsText, NoContent, OpenApiDocument};
use crate::types::*;
use crate::{SnapshotRef, VdiskRef};
use ovs_units::Name;
use uuid::Uuid;

for_each_operation!(table);
