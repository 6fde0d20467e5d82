//! The verbs of vDisks, their snapshots, templates and attachments.

use super::cache::VdiskCacheArgs;
use super::limits::LimitArgs;
use super::target::{
    NewVdisk, SnapshotTarget, SourceTarget, VdiskTarget, duration_ms, label, label_selector, vdisk_size,
};
use crate::image::format::{ReadFormat, WriteFormat};
use clap::{Args, Subcommand, ValueEnum, ValueHint};
use ovs_api::{LabelSelector, OnFull};
use ovs_units::{ByteCount, Name};
use std::path::PathBuf;

/// `ovs vdisk ...`
#[derive(Debug, Subcommand)]
pub enum VdiskCommand {
    /// Make a vDisk, empty or from a template
    Create(CreateVdiskArgs),
    /// List the vDisks, of one vPool or of all
    List {
        /// Only this vPool's
        #[arg(value_name = "POOL")]
        vpool: Option<Name>,
        /// Only those with this label; may be given several times
        #[arg(long, value_name = "KEY[=VALUE]", value_parser = label_selector)]
        label: Vec<LabelSelector>,
    },
    /// Show a vDisk: how to reach it, its snapshots, who uses it
    Show {
        /// The vDisk, or its UUID
        #[arg(value_name = "POOL/NAME")]
        vdisk: VdiskTarget,
    },
    /// Change a vDisk's size
    Resize {
        /// The vDisk, or its UUID
        #[arg(value_name = "POOL/NAME")]
        vdisk: VdiskTarget,
        /// The new size
        #[arg(long, value_name = "SIZE", value_parser = vdisk_size)]
        size: ByteCount,
        /// A smaller size is meant: what is cut off is lost
        #[arg(long)]
        allow_shrink: bool,
    },
    /// Limit what a vDisk's guests may do per second, at once; without an option: show the limits
    Limits {
        /// The vDisk, or its UUID
        #[arg(value_name = "POOL/NAME")]
        vdisk: VdiskTarget,
        /// No limits but those that are given here
        #[arg(long)]
        none: bool,
        #[command(flatten)]
        limits: Box<LimitArgs>,
    },
    /// Say what of a vDisk goes into the read cache, at once; without an option: show it
    Cache {
        /// The vDisk, or its UUID
        #[arg(value_name = "POOL/NAME")]
        vdisk: VdiskTarget,
        #[command(flatten)]
        cache: VdiskCacheArgs,
    },
    /// Delete a vDisk with its snapshots: to the trash, from where it can be restored
    Delete {
        /// The vDisk, or its UUID
        #[arg(value_name = "POOL/NAME")]
        vdisk: VdiskTarget,
        /// Not to the trash: for ever
        #[arg(long)]
        purge: bool,
    },
    /// Show a vDisk's counters
    Stats {
        /// The vDisk, or its UUID
        #[arg(value_name = "POOL/NAME")]
        vdisk: VdiskTarget,
    },
    /// Give back what nobody needs any more of what a vDisk has on its backend (happens by itself where that is much)
    Scrub {
        /// The vDisk, or its UUID
        #[arg(value_name = "POOL/NAME")]
        vdisk: VdiskTarget,
        /// Begin, and print the task
        #[arg(long)]
        no_wait: bool,
    },
    /// Make a writable copy of a vDisk or of a snapshot, at once and without copying data
    Clone {
        /// What to clone; a vDisk without a snapshot is cloned as it is now
        #[arg(value_name = "POOL/SRC[@SNAPSHOT]")]
        source: SourceTarget,
        /// The clone, in the same vPool
        #[arg(value_name = "POOL/NEW")]
        new: NewVdisk,
        /// Larger than the source
        #[arg(long, value_name = "SIZE", value_parser = vdisk_size)]
        size: Option<ByteCount>,
        #[command(flatten)]
        limits: Box<LimitArgs>,
        #[command(flatten)]
        cache: VdiskCacheArgs,
    },
    /// Fill a vDisk from a disk image: raw, a pipe of raw, or qcow2
    Import(ImportArgs),
    /// Write a vDisk or a snapshot to a disk image; a vDisk is written as it is when the export begins
    Export(ExportArgs),
    /// Refuse to delete a vDisk
    Protect {
        /// The vDisk, or its UUID
        #[arg(value_name = "POOL/NAME")]
        vdisk: VdiskTarget,
    },
    /// Allow again to delete a vDisk
    Unprotect {
        /// The vDisk, or its UUID
        #[arg(value_name = "POOL/NAME")]
        vdisk: VdiskTarget,
    },
    /// Serve a vDisk that is damaged, or offline since the write buffer's disk failed, as it is: what `show` says it may
    /// have lost is gone for good
    AcceptLoss {
        /// The vDisk, or its UUID
        #[arg(value_name = "POOL/NAME")]
        vdisk: VdiskTarget,
    },
    /// End the attachments of a vDisk
    Detach {
        /// The vDisk, or its UUID
        #[arg(value_name = "POOL/NAME")]
        vdisk: VdiskTarget,
        /// Also those that are connected: their clients are cut off, what they had not been acknowledged is lost
        #[arg(long)]
        force: bool,
    },
}

/// `ovs vdisk create`
#[derive(Debug, Args)]
pub struct CreateVdiskArgs {
    /// The new vDisk
    #[arg(value_name = "POOL/NAME")]
    pub new: NewVdisk,
    /// Its size: a multiple of 4KiB, such as 10GiB; not given: the template's, or the vPool's default
    #[arg(long, value_name = "SIZE", value_parser = vdisk_size)]
    pub size: Option<ByteCount>,
    /// Start with the contents of this template
    #[arg(long, value_name = "POOL/TEMPLATE")]
    pub template: Option<VdiskTarget>,
    #[command(flatten)]
    pub full: FullArgs,
    /// Refuse to delete it
    #[arg(long)]
    pub protected: bool,
    /// For people
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub description: String,
    /// A label to keep with it; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    pub label: Vec<(String, String)>,
    #[command(flatten)]
    pub limits: Box<LimitArgs>,
    #[command(flatten)]
    pub cache: VdiskCacheArgs,
}

/// What happens when there is no space.
#[derive(Debug, Args)]
pub struct FullArgs {
    /// What writes do when there is no space [default: the vPool's]
    #[arg(long, value_enum)]
    pub on_full: Option<OnFullArg>,
    /// How long writes stall before they fail, such as 30s; 0s: without end [default: the vPool's]
    #[arg(long, value_name = "TIME", value_parser = duration_ms)]
    pub stall_timeout: Option<u64>,
}

/// What writes do when there is no space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnFullArg {
    /// They wait
    Stall,
    /// They fail at once
    Enospc,
}

impl From<OnFullArg> for OnFull {
    fn from(arg: OnFullArg) -> OnFull {
        match arg {
            OnFullArg::Stall => OnFull::Stall,
            OnFullArg::Enospc => OnFull::Enospc,
        }
    }
}

/// `ovs vdisk import`
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The image; - is the standard input
    #[arg(value_name = "FILE|-", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// The vDisk to make
    #[arg(value_name = "POOL/NAME")]
    pub vdisk: NewVdisk,
    /// What the image is; auto looks at its first bytes
    #[arg(long, value_enum, default_value = "auto")]
    pub format: ReadFormat,
    /// The vDisk's size when it is to be larger than the image; for a pipe, the most that may come
    #[arg(long, value_name = "SIZE", value_parser = vdisk_size)]
    pub size: Option<ByteCount>,
    /// Fill a vDisk that exists: all it holds is lost
    #[arg(long, conflicts_with = "size")]
    pub overwrite: bool,
}

/// `ovs vdisk export`
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// What to export
    #[arg(value_name = "POOL/NAME[@SNAPSHOT]")]
    pub source: SourceTarget,
    /// The image to write; - is the standard output
    #[arg(value_name = "FILE|-", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// What to write
    #[arg(long, value_enum, default_value = "raw")]
    pub format: WriteFormat,
    /// Replace the file if it exists
    #[arg(long)]
    pub force: bool,
}

/// `ovs snapshot ...`
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Take a snapshot: every write acknowledged before is in it
    Create {
        /// The new snapshot
        #[arg(value_name = "POOL/NAME@SNAPSHOT")]
        snapshot: SnapshotTarget,
        /// For people
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        description: String,
        /// Return when all of it is on the backend
        #[arg(long)]
        wait: bool,
    },
    /// List a vDisk's snapshots, the oldest first
    List {
        /// The vDisk, or its UUID
        #[arg(value_name = "POOL/NAME")]
        vdisk: VdiskTarget,
    },
    /// Put a vDisk back to a snapshot: everything written since is lost
    Rollback {
        /// The snapshot
        #[arg(value_name = "POOL/NAME@SNAPSHOT")]
        snapshot: SnapshotTarget,
    },
    /// Delete a snapshot
    Delete {
        /// The snapshot
        #[arg(value_name = "POOL/NAME@SNAPSHOT")]
        snapshot: SnapshotTarget,
    },
}

/// `ovs template ...`
#[derive(Debug, Subcommand)]
pub enum TemplateCommand {
    /// Freeze a vDisk: from now on it only has children
    Set {
        /// The vDisk, or its UUID
        #[arg(value_name = "POOL/NAME")]
        vdisk: VdiskTarget,
    },
}

/// `ovs attachment ...`
#[derive(Debug, Subcommand)]
pub enum AttachmentCommand {
    /// List who uses which vDisk
    List {
        /// Only this vDisk's
        #[arg(value_name = "POOL/NAME")]
        vdisk: Option<VdiskTarget>,
    },
}
