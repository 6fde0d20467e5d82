//! The verbs of backends and presets.

use super::target::{byte_count, policy};
use clap::{
    Arg, ArgGroup, Args, Command, Error, Subcommand, ValueEnum, ValueHint,
    builder::{EnumValueParser, PossibleValue, TypedValueParser},
    error::ErrorKind,
};
use ovs_api::{BackendKind, Compression, Encryption, Policy};
use ovs_units::{ByteCount, Name};
use std::{ffi::OsStr, path::PathBuf};

/// `ovs backend ...`
#[derive(Debug, Subcommand)]
pub enum BackendCommand {
    /// Make a backend: a directory, a bucket of an object store, or a composite of other backends
    ///
    /// A directory takes --path, a store --endpoint, --bucket and its credentials, a composite --of and --preset. A store is
    /// tried before it is made: `ovs backend show` tells what came of it.
    Create(Box<CreateBackendArgs>),
    /// List the backends
    List,
    /// Show a backend: its drives and what they are for, how safe what is stored is, what can be lost
    Show {
        /// The backend
        name: Name,
    },
    /// Forget a backend that no vPool and no other backend uses; what is on it stays
    Delete {
        /// The backend
        name: Name,
    },
    /// Read all that is on the drives of a composite now, and make again what has changed; by itself that happens once in a while
    ///
    /// Tells what was found when all was read, which may take hours: guests come first. To interrupt it ends the wait alone; after `ovs
    /// task cancel` the rest is read at the usual pace (`repair.verify_every` in ovsd.yaml).
    Verify {
        /// The composite; those that it is made of are verified each by itself
        name: Name,
        /// Begin, and print the task
        #[arg(long)]
        no_wait: bool,
    },
    /// Add and remove drives of a composite
    #[command(subcommand)]
    Drive(DriveCommand),
}

/// `ovs backend drive ...`
#[derive(Debug, Subcommand)]
pub enum DriveCommand {
    /// Make a backend a drive of a composite: it takes its share of what is there; or have one that is leaving serve again
    Add {
        /// The composite
        composite: Name,
        /// A backend that nobody uses
        drive: Name,
    },
    /// Take a drive out of a composite, when what is on it is on the others
    ///
    /// A drive that works is emptied first, and free afterwards. One that does not come back is removed with --lost: what was on it
    /// is made again on the others, and it is never asked for anything any more.
    Remove {
        /// The composite
        composite: Name,
        /// One of its drives
        drive: Name,
        /// What is on it is gone, or given up
        #[arg(long)]
        lost: bool,
        /// Also when objects cannot be read without it: they are given up with it
        #[arg(long, requires = "lost")]
        accept_loss: bool,
        /// Begin, and print the task
        #[arg(long)]
        no_wait: bool,
    },
}

/// `ovs backend create`
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("user").args(["user_file", "user_env"]), group = ArgGroup::new("secret").args(["secret_file", "secret_env"]))]
pub struct CreateBackendArgs {
    /// The new backend
    pub name: Name,
    /// What it is made of [default: dir; with --of: composite]
    #[arg(long = "type", value_parser = BackendKindParser)]
    pub kind: Option<BackendKindArg>,
    /// Of dir: its directory; made when it does not exist
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub path: Option<PathBuf>,
    /// Of composite: the backends that it is made of, each used by nobody else
    #[arg(long, value_name = "BACKEND", value_delimiter = ',')]
    pub of: Vec<Name>,
    /// Of composite: how objects are spread over them
    #[arg(long)]
    pub preset: Option<Name>,
    /// As a drive of another: what else is lost when it is [default: this host for a directory, else its own name]
    #[arg(long)]
    pub node: Option<String>,
    /// As a drive of another: where it is
    #[arg(long)]
    pub site: Option<String>,
    /// As a drive of another: its share beside the others' [default: 1]
    #[arg(long)]
    pub weight: Option<u32>,
    #[command(flatten)]
    pub remote: RemoteArgs,
    /// Make nothing: print capacity, overhead and what can be lost
    #[arg(long)]
    pub dry_run: bool,
}

/// An object store, and who asks it.
#[derive(Debug, Args)]
#[command(next_help_heading = "Object stores")]
pub struct RemoteArgs {
    /// Its URL; of swift that of its authentication, ending in /v1.0 or /v3
    #[arg(long, value_name = "URL", value_hint = ValueHint::Url)]
    pub endpoint: Option<String>,
    /// The bucket or container; it has to be there
    #[arg(long, alias = "container")]
    pub bucket: Option<String>,
    /// Of s3 [default: us-east-1], and of swift with a project
    #[arg(long)]
    pub region: Option<String>,
    /// What its names begin with; nothing else in the bucket is touched [default: ovs]
    #[arg(long)]
    pub prefix: Option<String>,
    /// Of s3: the bucket is in the host's name, as AWS wants it
    #[arg(long)]
    pub bucket_in_host: bool,
    /// What is sent to it, and received from it, per second at most, such as 50MiB [default: not bounded]
    #[arg(long, value_name = "SIZE", value_parser = byte_count)]
    pub bandwidth: Option<ByteCount>,
    /// Requests under way at most [default: 32]
    #[arg(long, value_name = "NUMBER")]
    pub concurrency: Option<u32>,
    /// Of swift with Keystone: the project
    #[arg(long)]
    pub project: Option<String>,
    /// Of swift with Keystone: the domain of user and project [default: Default]
    #[arg(long)]
    pub domain: Option<String>,
    /// A file in the folder secrets/stores beside ovsd.yaml with the access key's id (s3), the user (swift) or the account (azure)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub user_file: Option<PathBuf>,
    /// A variable OVS_SECRET_STORE_... of ovsd's environment with the same
    #[arg(long, value_name = "NAME")]
    pub user_env: Option<String>,
    /// A file in the folder secrets/stores beside ovsd.yaml, readable by root alone, with the secret key, the password or the service account's JSON
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub secret_file: Option<PathBuf>,
    /// A variable OVS_SECRET_STORE_... of ovsd's environment with the same
    #[arg(long, value_name = "NAME")]
    pub secret_env: Option<String>,
}

impl RemoteArgs {
    /// An option of these that is there.
    pub(crate) fn first_given(&self) -> Option<&'static str> {
        let options = [
            ("--endpoint", self.endpoint.is_some()),
            ("--bucket", self.bucket.is_some()),
            ("--region", self.region.is_some()),
            ("--prefix", self.prefix.is_some()),
            ("--bucket-in-host", self.bucket_in_host),
            ("--bandwidth", self.bandwidth.is_some()),
            ("--concurrency", self.concurrency.is_some()),
            ("--project", self.project.is_some()),
            ("--domain", self.domain.is_some()),
            ("--user-file", self.user_file.is_some()),
            ("--user-env", self.user_env.is_some()),
            ("--secret-file", self.secret_file.is_some()),
            ("--secret-env", self.secret_env.is_some()),
        ];
        options.into_iter().find_map(|(option, is_given)| is_given.then_some(option))
    }
}

/// What a backend is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BackendKindArg {
    /// A directory
    Dir,
    /// A bucket of Amazon's S3 or of what speaks like it
    S3,
    /// A container of OpenStack's Swift
    Swift,
    /// A bucket of Google's Cloud Storage
    Gcs,
    /// A container of Azure's blobs
    Azure,
    /// Other backends
    Composite,
}

/// Whoever asks for what cannot be one is told what to use instead (decision 0012).
#[derive(Clone)]
struct BackendKindParser;

impl BackendKindParser {
    fn instead_of(word: &str) -> Option<&'static str> {
        match word {
            "webdav" | "davfs" => Some(
                "no backend is of type webdav: its servers answer before a disk has what they were sent, and it has no request for that. \
                 A mount (davfs2, rclone) is no way around it. Instead: that server's disk over NFS, exported with sync, as --type dir; \
                 or an object store on that server, as --type s3 or swift",
            ),
            "sftp" | "sshfs" => Some(
                "no backend is of type sftp: the protocol cannot make a new file's name durable. A mount (sshfs) says it has, and has not. \
                 Instead: that server's disk over NFS, exported with sync, as --type dir; or an object store on that server, as --type s3 or swift",
            ),
            _ => None,
        }
    }
}

impl TypedValueParser for BackendKindParser {
    type Value = BackendKindArg;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
    ) -> Result<BackendKindArg, Error> {
        match value.to_str().and_then(BackendKindParser::instead_of) {
            Some(why) => Err(command.clone().error(ErrorKind::InvalidValue, why)),
            None => EnumValueParser::<BackendKindArg>::new().parse_ref(command, arg, value),
        }
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let kinds = BackendKindArg::value_variants().iter();
        Some(Box::new(kinds.filter_map(ValueEnum::to_possible_value)))
    }
}

impl From<BackendKindArg> for BackendKind {
    fn from(arg: BackendKindArg) -> BackendKind {
        match arg {
            BackendKindArg::Dir => BackendKind::Dir,
            BackendKindArg::S3 => BackendKind::S3,
            BackendKindArg::Swift => BackendKind::Swift,
            BackendKindArg::Gcs => BackendKind::Gcs,
            BackendKindArg::Azure => BackendKind::Azure,
            BackendKindArg::Composite => BackendKind::Composite,
        }
    }
}

/// `ovs preset ...`
#[derive(Debug, Subcommand)]
pub enum PresetCommand {
    /// Make a preset; but for its keys it never changes
    Create(CreatePresetArgs),
    /// List the presets
    List,
    /// Show a preset
    Show {
        /// The preset
        name: Name,
    },
    /// Protect the keys of a preset's objects with another key, or add one for new objects; no object is written again
    Rotate(RotatePresetArgs),
    /// Delete a preset that no backend uses
    Delete {
        /// The preset
        name: Name,
    },
}

/// `ovs preset rotate`
#[derive(Debug, Args)]
pub struct RotatePresetArgs {
    /// The preset
    pub name: Name,
    /// A file in the folder secrets/keys beside ovsd.yaml, readable by root alone, with the key from now on
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "key_env",
        required_unless_present_any = ["key_env", "new_data_key"])]
    pub key_file: Option<PathBuf>,
    /// A variable OVS_SECRET_KEY_... of ovsd's environment with the same
    #[arg(long, value_name = "NAME")]
    pub key_env: Option<String>,
    /// Encrypt new objects under a new key; old ones stay readable under theirs
    #[arg(long)]
    pub new_data_key: bool,
}

/// `ovs preset create`
#[derive(Debug, Args)]
pub struct CreatePresetArgs {
    /// The new preset
    pub name: Name,
    /// k data and m parity fragments, acknowledged once c are written, at most x per node; the best first, given several times
    #[arg(long, value_name = "K,M,C,X", value_parser = policy, required = true)]
    pub policy: Vec<Policy>,
    /// How objects are compressed
    #[arg(long, value_enum, default_value = "none")]
    pub compression: CompressionArg,
    /// How objects are encrypted
    #[arg(long, value_enum, default_value = "none")]
    pub encryption: EncryptionArg,
    /// A file in the folder secrets/keys beside ovsd.yaml, readable by root alone, with a key of 64 hexadecimal digits (openssl rand -hex 32)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "key_env")]
    pub key_file: Option<PathBuf>,
    /// A variable OVS_SECRET_KEY_... of ovsd's environment with the same
    #[arg(long, value_name = "NAME")]
    pub key_env: Option<String>,
    /// The largest fragment
    #[arg(long, visible_alias = "fragment-size", value_name = "SIZE", default_value = "4MiB", value_parser = byte_count)]
    pub fragment: ByteCount,
}

/// How objects are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CompressionArg {
    /// Not
    None,
    /// LZ4: fast
    Lz4,
    /// Zstandard: smaller
    Zstd,
}

impl From<CompressionArg> for Compression {
    fn from(arg: CompressionArg) -> Compression {
        match arg {
            CompressionArg::None => Compression::None,
            CompressionArg::Lz4 => Compression::Lz4,
            CompressionArg::Zstd => Compression::Zstd,
        }
    }
}

/// How objects are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EncryptionArg {
    /// Not
    None,
    /// AES-256-GCM, each object under a key of its own
    #[value(name = "aes-256-gcm")]
    Aes256Gcm,
}

impl From<EncryptionArg> for Encryption {
    fn from(arg: EncryptionArg) -> Encryption {
        match arg {
            EncryptionArg::None => Encryption::None,
            EncryptionArg::Aes256Gcm => Encryption::Aes256Gcm,
        }
    }
}
