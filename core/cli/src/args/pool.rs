//! The verbs of vPools, trash, vMachines and exports.

use super::{
    backend::{BackendKindArg, RemoteArgs},
    cache::VpoolCacheArgs,
    target::{NewVdisk, VdiskTarget, duration_ms, label, vdisk_size},
    vdisk::FullArgs,
};
use clap::{ArgGroup, Args, Subcommand, ValueEnum, ValueHint};
use ovs_api::ExportProtocol;
use ovs_units::{ByteCount, Name};
use std::path::PathBuf;
use uuid::Uuid;

/// `ovs vpool ...`
#[derive(Debug, Subcommand)]
pub enum VpoolCommand {
    /// Make a vPool
    Create(CreateVpoolArgs),
    /// List the vPools
    List,
    /// Show a vPool
    Show {
        /// The vPool
        name: Name,
    },
    /// Say what of a vPool's vDisks goes into the read cache, at once; without an option: show it
    Cache {
        /// The vPool
        name: Name,
        #[command(flatten)]
        cache: VpoolCacheArgs,
    },
    /// Delete a vPool without vDisks, and its backend with its objects
    Delete {
        /// The vPool
        name: Name,
        /// Empty its trash first
        #[arg(long)]
        purge_trash: bool,
        /// Also vDisks on its backend that are not taken in here, or cannot be read
        #[arg(long)]
        discard_unread: bool,
    },
    /// Rebuild a vPool's vDisks, snapshots and clones from what is on its backend
    Recover(Box<RecoverArgs>),
}

/// `ovs vpool create`
#[derive(Debug, Args)]
pub struct CreateVpoolArgs {
    /// The new vPool
    pub name: Name,
    /// An existing backend that no vPool uses [default: a directory of its own]
    #[arg(long)]
    pub backend: Option<Name>,
    /// The preset of its backend [default: that]
    #[arg(long)]
    pub preset: Option<Name>,
    #[command(flatten)]
    pub full: FullArgs,
    /// The size of a vDisk that is created without one [default: 10GiB]
    #[arg(long, value_name = "SIZE", value_parser = vdisk_size)]
    pub default_size: Option<ByteCount>,
    /// How long a deleted vDisk can be had back, such as 7d; 0s: not at all [default: 1d]
    #[arg(long, value_name = "TIME", value_parser = duration_ms)]
    pub trash_retention: Option<u64>,
    #[command(flatten)]
    pub cache: VpoolCacheArgs,
    /// For people
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub description: String,
    /// A label to keep with it; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    pub label: Vec<(String, String)>,
}

/// `ovs vpool recover`
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("user").args(["user_file", "user_env"]), group = ArgGroup::new("secret").args(["secret_file", "secret_env"]))]
pub struct RecoverArgs {
    /// The vPool; with --backend, the name that it is to have
    pub name: Name,
    /// The directory that holds its objects, when this ovsd does not know the vPool (any more); of a composite, that of any drive
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub backend: Option<PathBuf>,
    /// The object store that holds them; of a composite, any one that is a drive
    #[arg(long = "type", value_enum, conflicts_with = "backend")]
    pub kind: Option<BackendKindArg>,
    /// The name of a directory that was all of the vPool's backend [default: the vPool's]; others keep theirs
    #[arg(long, value_name = "NAME", requires = "backend")]
    pub backend_name: Option<Name>,
    #[command(flatten)]
    pub remote: RemoteArgs,
    /// Begin, and print the task
    #[arg(long)]
    pub no_wait: bool,
}

/// `ovs trash ...`
#[derive(Debug, Subcommand)]
pub enum TrashCommand {
    /// List deleted vDisks, the oldest first
    List {
        /// Only those that were in this vPool
        #[arg(value_name = "POOL")]
        vpool: Option<Name>,
    },
    /// Give a deleted vDisk back, with its snapshots
    Restore {
        /// The name it had, or its UUID
        #[arg(value_name = "POOL/NAME")]
        vdisk: VdiskTarget,
        /// Another name, when the old one is taken
        #[arg(long, value_name = "NEW")]
        name: Option<Name>,
    },
    /// Delete for ever what is in the trash
    Empty {
        /// Only what was in this vPool
        #[arg(value_name = "POOL")]
        vpool: Option<Name>,
        /// Begin, and print the task
        #[arg(long)]
        no_wait: bool,
    },
}

/// `ovs vmachine ...`
#[derive(Debug, Subcommand)]
pub enum VmachineCommand {
    /// Make a vMachine out of vDisks
    Create {
        /// The new vMachine
        name: Name,
        /// Its vDisks, in their order
        #[arg(value_name = "POOL/NAME", required = true)]
        vdisks: Vec<VdiskTarget>,
    },
    /// List the vMachines
    List,
    /// Show a vMachine
    Show {
        /// The vMachine
        name: Name,
    },
    /// Forget a vMachine; its vDisks stay
    Delete {
        /// The vMachine
        name: Name,
    },
    /// Take a snapshot of all its vDisks at one moment
    Snapshot {
        /// The vMachine
        name: Name,
        /// The name of the snapshot of each vDisk
        snapshot: Name,
    },
    /// Put all its vDisks back to their snapshots of one name
    Rollback {
        /// The vMachine
        name: Name,
        /// The name of the snapshots
        snapshot: Name,
    },
    /// Clone all its vDisks
    Clone {
        /// The vMachine
        name: Name,
        /// The new vMachine
        new: Name,
        /// The name of the snapshots to clone [default: as they are now]
        #[arg(long)]
        snapshot: Option<Name>,
    },
}

/// `ovs export ...`
#[derive(Debug, Subcommand)]
pub enum ExportCommand {
    /// Export a vDisk to clients on other machines
    Create {
        /// The vDisk
        #[arg(value_name = "POOL/NAME")]
        vdisk: NewVdisk,
        /// The protocol that they use
        #[arg(long, value_enum)]
        protocol: ExportProtocolArg,
        /// Who may: an initiator's name, or a network in CIDR form; may be given several times
        #[arg(long, value_name = "WHO")]
        client: Vec<String>,
        /// Nobody writes
        #[arg(long)]
        read_only: bool,
    },
    /// List the exports
    List,
    /// Show an export
    Show {
        /// Its UUID
        export: Uuid,
    },
    /// End an export
    Delete {
        /// Its UUID
        export: Uuid,
    },
}

/// The protocol that clients elsewhere use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportProtocolArg {
    /// A LUN of an iSCSI target
    Iscsi,
    /// A file of an NFSv3 export
    Nfs,
    /// NBD over TCP with TLS
    NbdTls,
}

impl From<ExportProtocolArg> for ExportProtocol {
    fn from(arg: ExportProtocolArg) -> ExportProtocol {
        match arg {
            ExportProtocolArg::Iscsi => ExportProtocol::Iscsi,
            ExportProtocolArg::Nfs => ExportProtocol::Nfs,
            ExportProtocolArg::NbdTls => ExportProtocol::NbdTls,
        }
    }
}
