//! The command line: every word that `ovs` understands.
//!
//! Not here: what the words do (`commands`).

mod backend;
mod cache;
mod limits;
mod pool;
mod system;
pub mod target;
mod vdisk;

pub use backend::{
    BackendCommand, BackendKindArg, CompressionArg, CreateBackendArgs, CreatePresetArgs, DriveCommand,
    EncryptionArg, PresetCommand, RemoteArgs, RotatePresetArgs,
};
pub use cache::{CacheDedupArg, CacheModeArg, VdiskCacheArgs, VpoolCacheArgs};
pub use limits::LimitArgs;
pub use pool::{
    CreateVpoolArgs, ExportCommand, ExportProtocolArg, RecoverArgs, TrashCommand, VmachineCommand,
    VpoolCommand,
};
pub use system::{EventsArgs, GenerateCommand, HostCommand, TaskCommand, TaskStateArg};
pub use vdisk::{
    AttachmentCommand, CreateVdiskArgs, ExportArgs, FullArgs, ImportArgs, OnFullArg, SnapshotCommand,
    TemplateCommand, VdiskCommand,
};

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use std::path::PathBuf;

/// Fast block storage for virtual machines and containers on storage that cannot run them
///
/// vDisks live in vPools and are written POOL/NAME, their snapshots POOL/NAME@SNAPSHOT. A fresh ovsd has a vPool named
/// default: `ovs vdisk create default/x --size 1GiB` works at once.
///
/// Exit codes: 0 done, 1 refused or failed, 2 wrong usage.
#[derive(Debug, Parser)]
#[command(name = "ovs", version, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: GlobalArgs,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct GlobalArgs {
    /// table for people, json for programs: the objects of the API
    #[arg(long, global = true, value_enum, default_value = "table", hide_possible_values = true)]
    pub output: OutputFormat,
    /// The directory below which ovsd keeps /etc/ovs, /var/lib/ovs, /run/ovs and /mnt/ovs
    #[arg(long, global = true, env = "OVS_ROOT", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub root: Option<PathBuf>,
    /// The socket of ovsd [default: run/ovs/ovsd.sock below the root]
    #[arg(long, global = true, value_name = "SOCKET", value_hint = ValueHint::FilePath)]
    pub socket: Option<PathBuf>,
    /// An ovsd on another host instead: https://HOST:PORT
    // Ids of their own: the arguments of a command have names like these, `ovs host show HOST` for one.
    #[arg(id = "global-host", long = "host", global = true, env = "OVS_HOST", value_name = "URL", conflicts_with = "socket", value_hint = ValueHint::Url)]
    pub host: Option<String>,
    /// The authority of its certificate, in PEM [default: those that this host trusts]
    #[arg(id = "global-ca", long = "ca", global = true, env = "OVS_CA", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub ca: Option<PathBuf>,
    /// The certificate to show there, in PEM
    #[arg(id = "global-cert", long = "cert", global = true, env = "OVS_CERT", value_name = "FILE", requires = "global-key", value_hint = ValueHint::FilePath)]
    pub cert: Option<PathBuf>,
    /// The key of that certificate
    #[arg(id = "global-key", long = "key", global = true, env = "OVS_KEY", value_name = "FILE", requires = "global-cert", value_hint = ValueHint::FilePath)]
    pub key: Option<PathBuf>,
    /// A file whose only line is a token for that ovsd
    #[arg(id = "global-token-file", long = "token-file", global = true, env = "OVS_TOKEN_FILE", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub token_file: Option<PathBuf>,
    /// Print results and errors only: no progress, no remarks
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people
    Table,
    /// For programs
    Json,
}

/// The nouns.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// How ovsd is, and what asks for attention
    Status,
    /// vDisks: create, resize, clone, import, export
    #[command(subcommand)]
    Vdisk(VdiskCommand),
    /// Snapshots of vDisks: create, roll back to, delete
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Templates: vDisks that only have children
    #[command(subcommand)]
    Template(TemplateCommand),
    /// Deleted vDisks that can be had back
    #[command(subcommand)]
    Trash(TrashCommand),
    /// Who uses which vDisk
    #[command(subcommand)]
    Attachment(AttachmentCommand),
    /// Pools of vDisks
    #[command(subcommand)]
    Vpool(VpoolCommand),
    /// Where objects live
    #[command(subcommand)]
    Backend(BackendCommand),
    /// How objects are stored
    #[command(subcommand)]
    Preset(PresetCommand),
    /// The vDisks of one VM or container, operated on together
    #[command(subcommand)]
    Vmachine(VmachineCommand),
    /// vDisks that clients on other machines reach
    #[command(subcommand)]
    Export(ExportCommand),
    /// The hosts that run ovsd
    #[command(subcommand)]
    Host(HostCommand),
    /// Long operations
    #[command(subcommand)]
    Task(TaskCommand),
    /// What happens, as it happens
    Events(EventsArgs),
    /// Write shell completion and man pages, for packages
    #[command(subcommand, hide = true)]
    Generate(GenerateCommand),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_options_stand_anywhere() {
        let line = ["ovs", "--root", "/r", "vdisk", "list", "default", "--output", "json", "-q"];
        let cli = Cli::try_parse_from(line).unwrap();
        assert_eq!(cli.global.output, OutputFormat::Json);
        assert_eq!(cli.global.root, Some("/r".into()));
        assert!(cli.global.quiet);
    }

    #[test]
    fn another_host_is_named_with_what_it_needs() {
        let line = "ovs status --host https://h1:8443 --ca /ca --cert /c --key /k";
        let global = Cli::try_parse_from(line.split(' ')).unwrap().global;
        assert_eq!((global.host.as_deref(), global.key), (Some("https://h1:8443"), Some("/k".into())));
        let global = Cli::try_parse_from(["ovs", "host", "show", "h2"]).unwrap().global;
        assert_eq!(global.host, None, "a host that is asked about is not the one that is asked");
        check_usage("ovs status --host https://h1:8443 --socket /s", &["--host", "--socket"]);
        check_usage("ovs status --host https://h1:8443 --cert /c", &["--key"]);
    }

    fn check_usage(line: &str, expected: &[&str]) {
        let error = Cli::try_parse_from(line.split(' ')).unwrap_err();
        let message = error.to_string();
        for words in expected {
            assert!(message.contains(words), "{line}: {message:?} does not say {words:?}");
        }
        assert_eq!(error.exit_code(), 2, "{line}");
    }

    #[test]
    fn what_is_refused_is_named_with_what_is_allowed() {
        check_usage("ovs vdisk create x --size 1GiB", &["POOL/NAME", "'x'", "form POOL/NAME"]);
        check_usage("ovs vdisk create p/x --size 1parsec", &["--size", "1parsec", "10GiB"]);
        check_usage("ovs vdisk create p/x --size 4097", &["--size", "4097", "multiples of 4KiB"]);
        check_usage("ovs vpool show ../x", &["../x", "letters, digits"]);
        check_usage("ovs vdisk create p/x --on-full explode", &["--on-full", "explode", "stall, enospc"]);
        check_usage("ovs vdisk resize p/x", &["--size"]);
        check_usage("ovs task show 7", &["TASK", "'7'"]);
        check_usage("ovs frobnicate", &["frobnicate"]);
        check_usage("ovs backend create b --type tape", &["'tape'", "dir, s3, swift, gcs, azure, composite"]);
        check_usage(
            "ovs backend create b --type webdav",
            &["type webdav", "davfs2", "NFS", "--type dir", "--type s3"],
        );
        check_usage(
            "ovs backend create b --type sftp",
            &["type sftp", "sshfs", "NFS", "--type dir", "--type s3"],
        );
    }
}
