//! The options of `docker volume create -d ovs -o KEY=VALUE`, checked before anything is made.
//!
//! Docker checks nothing for a plugin: every key and value arrives verbatim. What is not listed in [`KEYS`], [`LIMIT_KEYS`] or [`CACHE_KEYS`] is refused
//! with the list, and every value has a rule. Options for other programs go through `filesystem_options`.
//!
//! Options are remembered with the volume as canonical text, so that a second create can be compared with the first.

use crate::filesystem_options::{MkfsOptions, MountOptions};
use crate::{
    cache_options::{self, CACHE_KEYS},
    limit_options::{self, LIMIT_KEYS},
};
use ovs_units::{Limits, Name, VDISK_SIZE_BYTES_MAX, VdiskCache, VdiskPath, format_size, parse_size};
use std::{collections::BTreeMap, fmt, str::FromStr};
use thiserror::Error;

/// Every option but those in [`LIMIT_KEYS`] and [`CACHE_KEYS`], with its meaning for the error text.
pub const KEYS: [(&str, &str); 12] = [
    ("from", "another volume to clone: NAME[@SNAPSHOT] or POOL/NAME[@SNAPSHOT]"),
    ("fstype", "ext4 or xfs"),
    ("gid", "numeric group of the volume's root directory"),
    ("label", "labels of the vDisk: KEY=VALUE[,KEY=VALUE]"),
    ("mkfs_opts", "options for mkfs, from an allow-list"),
    ("mode", "octal mode of the volume's root directory"),
    ("mount_opts", "mount options, comma separated, from an allow-list"),
    ("size", "10GiB, 512MiB"),
    ("snapshot", "a snapshot to clone: POOL/NAME@SNAPSHOT, or SNAPSHOT together with from=NAME"),
    ("template", "a template to clone: NAME or POOL/NAME"),
    ("uid", "numeric owner of the volume's root directory"),
    ("vpool", "the vPool to create the vDisk in"),
];

/// mkfs.xfs refuses anything smaller.
pub const XFS_SIZE_BYTES_MIN: u64 = 300 << 20;
/// Below this ext4 has no room for a journal.
pub const EXT4_SIZE_BYTES_MIN: u64 = 8 << 20;

/// The owner and the mode of a volume's root directory when nothing else is asked for, as text.
const DEFAULTS: [(&str, &str); 3] = [("uid", "0"), ("gid", "0"), ("mode", "0755")];

/// A file system that a volume can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fstype {
    /// The default.
    Ext4,
    /// At least 300 MiB.
    Xfs,
}

impl Fstype {
    /// As mount(2) and the vDisk's label write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Fstype::Ext4 => "ext4",
            Fstype::Xfs => "xfs",
        }
    }

    /// The smallest device that mkfs accepts.
    pub fn size_bytes_min(self) -> u64 {
        match self {
            Fstype::Ext4 => EXT4_SIZE_BYTES_MIN,
            Fstype::Xfs => XFS_SIZE_BYTES_MIN,
        }
    }
}

impl fmt::Display for Fstype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Fstype {
    type Err = String;
    fn from_str(text: &str) -> Result<Fstype, String> {
        match text {
            "ext4" => Ok(Fstype::Ext4),
            "xfs" => Ok(Fstype::Xfs),
            _ => Err("allowed: ext4, xfs".to_owned()),
        }
    }
}

/// What a volume is a copy of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// A template; otherwise a vDisk, now or at a snapshot.
    pub is_template: bool,
    /// Where it is, if that was said.
    pub vpool: Option<Name>,
    /// Its name.
    pub vdisk: Name,
    /// The point in time; none: now.
    pub snapshot: Option<Name>,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(vpool) = &self.vpool {
            write!(f, "{vpool}/")?;
        }
        write!(f, "{}", self.vdisk)?;
        if let Some(snapshot) = &self.snapshot {
            write!(f, "@{snapshot}")?;
        }
        Ok(())
    }
}

/// The owner and mode of a volume's root directory, where the user said so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RootDirectory {
    /// User.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Permission bits, with set-id and sticky.
    pub mode: Option<u32>,
}

/// The options of one volume, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeOptions {
    /// Bytes; none: the default, or the origin's.
    pub size_bytes: Option<u64>,
    /// The file system to make; none: ext4, or the origin's.
    pub fstype: Option<Fstype>,
    /// For mkfs.
    pub mkfs: MkfsOptions,
    /// For mount.
    pub mount: MountOptions,
    /// The root directory.
    pub root: RootDirectory,
    /// The vPool; none: the origin's, or the default.
    pub vpool: Option<Name>,
    /// What to clone.
    pub origin: Option<Origin>,
    /// What the container may do per second.
    pub limits: Limits,
    /// Its part in the read cache.
    pub cache: VdiskCache,
    /// Labels of the user's own.
    pub labels: BTreeMap<String, String>,
    /// What was given, in canonical text.
    given: BTreeMap<String, String>,
}

/// Why options were refused; the text names the option, what was given and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum OptionError {
    /// No such option.
    #[error("unknown option {}; allowed: {}", .0.join(", "), allowed_keys())]
    Unknown(Vec<String>),
    /// A value that its option does not take.
    #[error("option {key}={given:?} is not allowed: {reason}")]
    Value {
        /// The option.
        key: &'static str,
        /// The beginning of what was given.
        given: String,
        /// What is allowed.
        reason: String,
    },
    /// Options that do not go together.
    #[error("{0}")]
    Together(String),
}

fn keys() -> impl Iterator<Item = &'static str> {
    KEYS.iter().chain(&LIMIT_KEYS).chain(&CACHE_KEYS).map(|(key, _)| *key)
}

fn allowed_keys() -> String {
    keys().collect::<Vec<_>>().join(", ")
}

/// The beginning of what was given: a hostile value may be a megabyte long.
fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}

impl VolumeOptions {
    /// Checks what Docker sent.
    pub fn parse(opts: &BTreeMap<String, String>) -> Result<VolumeOptions, OptionError> {
        let unknown: Vec<String> = opts
            .keys()
            .filter(|key| !keys().any(|known| known == *key))
            .take(10)
            .map(|key| format!("{:?}", clip(key)))
            .collect();
        if !unknown.is_empty() {
            return Err(OptionError::Unknown(unknown));
        }
        let size_bytes = value(opts, "size", parse_volume_size)?;
        let fstype = value(opts, "fstype", Fstype::from_str)?;
        let for_fstype = fstype.unwrap_or(Fstype::Ext4);
        let mkfs = value(opts, "mkfs_opts", |text| MkfsOptions::parse(for_fstype, text))?.unwrap_or_default();
        let origin = parse_origin(opts)?;
        // A clone's file system is its origin's, which is not known here.
        let mount_for = if origin.is_some() { fstype } else { Some(for_fstype) };
        let mount =
            value(opts, "mount_opts", |text| MountOptions::parse(mount_for, text))?.unwrap_or_default();
        let root = RootDirectory {
            uid: value(opts, "uid", parse_owner)?,
            gid: value(opts, "gid", parse_owner)?,
            mode: value(opts, "mode", parse_mode)?,
        };
        let vpool = value(opts, "vpool", |text| Name::new(text).map_err(|e| e.to_string()))?;
        let labels = value(opts, "label", parse_labels)?.unwrap_or_default();
        let given = |key: &str| opts.get(key).map(String::as_str);
        let refused = |(key, reason): (&'static str, String)| OptionError::Value {
            key,
            given: clip(given(key).unwrap_or_default()),
            reason,
        };
        let limits = limit_options::parse(given).map_err(refused)?;
        let cache = cache_options::parse(given).map_err(refused)?;

        if origin.is_some() && !mkfs.is_empty() {
            return Err(OptionError::Together(
                "mkfs_opts cannot be given for a clone: a clone keeps its origin's file system".to_owned(),
            ));
        }
        if let (Some(size_bytes), None) = (size_bytes, &origin) {
            check_size_for(for_fstype, size_bytes)?;
        }
        let mut options = VolumeOptions {
            size_bytes,
            fstype,
            mkfs,
            mount,
            root,
            vpool,
            origin,
            limits,
            cache,
            labels,
            given: BTreeMap::new(),
        };
        options.given = options.canonical();
        Ok(options)
    }

    /// Options from the text that [`VolumeOptions::remembered`] made.
    pub fn from_remembered(text: &str) -> Result<VolumeOptions, String> {
        let given: BTreeMap<String, String> =
            serde_json::from_str(text).map_err(|e| format!("the volume's remembered options: {e}"))?;
        VolumeOptions::parse(&given).map_err(|e| format!("the volume's remembered options: {e}"))
    }

    /// What was given, as text that [`VolumeOptions::from_remembered`] reads.
    pub fn remembered(&self) -> String {
        // A map of strings always has a JSON form.
        serde_json::to_string(&self.given).unwrap_or_default()
    }

    /// The file system to make or to expect.
    pub fn fstype_or_default(&self) -> Fstype {
        self.fstype.unwrap_or(Fstype::Ext4)
    }

    fn canonical(&self) -> BTreeMap<String, String> {
        let mut given = BTreeMap::new();
        let mut put = |key: &str, text: Option<String>| {
            if let Some(text) = text {
                given.insert(key.to_owned(), text);
            }
        };
        put("size", self.size_bytes.map(|bytes| bytes.to_string()));
        put("fstype", self.fstype.map(|fstype| fstype.to_string()));
        put("mkfs_opts", (!self.mkfs.is_empty()).then(|| self.mkfs.to_string()));
        put("mount_opts", (!self.mount.is_empty()).then(|| self.mount.to_string()));
        put("uid", self.root.uid.map(|id| id.to_string()));
        put("gid", self.root.gid.map(|id| id.to_string()));
        put("mode", self.root.mode.map(|mode| format!("{mode:04o}")));
        put("vpool", self.vpool.as_ref().map(Name::to_string));
        if let Some(origin) = &self.origin {
            let key = if origin.is_template { "template" } else { "from" };
            put(key, Some(origin.to_string()));
        }
        limit_options::canonical(&self.limits).for_each(|(key, text)| put(key, Some(text)));
        cache_options::canonical(&self.cache).for_each(|(key, text)| put(key, Some(text)));
        let labels: Vec<String> = self.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        put("label", (!labels.is_empty()).then(|| labels.join(",")));
        given
    }

    /// How this request differs from the volume that is there; empty: not at all. Only what is given here counts:
    /// an implicit create of an existing volume, which has no options, differs in nothing.
    pub fn differences(&self, existing: &ExistingVolume) -> Vec<String> {
        let mut differences = Vec::new();
        for (key, asked) in &self.given {
            let have = existing.effective(key);
            if key == "size" && *asked == existing.size_bytes.to_string() {
                continue;
            }
            if have.as_deref() != Some(asked) {
                let show = |text: &str| match (key.as_str(), text.parse()) {
                    ("size", Ok(bytes)) => format_size(bytes),
                    _ => text.to_owned(),
                };
                let have = have.map_or_else(|| "none".to_owned(), |have| show(&have));
                differences.push(format!("{key} is {have}, asked for {}", show(asked)));
            }
        }
        differences
    }
}

/// What a second create is compared with.
#[derive(Debug, Clone)]
pub struct ExistingVolume {
    /// The options that it was created with.
    pub options: VolumeOptions,
    /// Its size now.
    pub size_bytes: u64,
    /// Its vPool.
    pub vpool: Name,
    /// Its file system.
    pub fstype: Fstype,
}

impl ExistingVolume {
    /// The option's value in canonical text, whether it was given or is the default.
    fn effective(&self, key: &str) -> Option<String> {
        if let Some(text) = self.options.given.get(key) {
            return Some(text.clone());
        }
        match key {
            "size" => Some(self.size_bytes.to_string()),
            "vpool" => Some(self.vpool.to_string()),
            "fstype" => Some(self.fstype.to_string()),
            _ => DEFAULTS.iter().find(|(default, _)| *default == key).map(|(_, text)| (*text).to_owned()),
        }
    }
}

/// Refuses a size that mkfs would refuse later.
pub fn check_size_for(fstype: Fstype, size_bytes: u64) -> Result<(), OptionError> {
    let least = fstype.size_bytes_min();
    if size_bytes < least {
        return Err(OptionError::Value {
            key: "size",
            given: format_size(size_bytes),
            reason: format!("{fstype} needs at least {}", format_size(least)),
        });
    }
    Ok(())
}

fn value<T>(
    opts: &BTreeMap<String, String>,
    key: &'static str,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<Option<T>, OptionError> {
    let Some(text) = opts.get(key) else { return Ok(None) };
    parse(text).map(Some).map_err(|reason| OptionError::Value { key, given: clip(text), reason })
}

/// A size for a vDisk: whole clusters, 64 TiB at most.
pub fn parse_volume_size(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text).map_err(|e| e.to_string())?;
    if bytes == 0 || !bytes.is_multiple_of(ovs_units::CLUSTER_SIZE_BYTES) {
        return Err("a size is a multiple of 4 KiB".to_owned());
    }
    if bytes > VDISK_SIZE_BYTES_MAX {
        return Err(format!("at most {}", format_size(VDISK_SIZE_BYTES_MAX)));
    }
    Ok(bytes)
}

fn parse_owner(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        // 2^32 - 1 means "leave as it is" to chown(2).
        Ok(id) if id != u32::MAX && text.bytes().all(|b| b.is_ascii_digit()) => Ok(id),
        _ => Err("a number from 0 to 4294967294".to_owned()),
    }
}

fn parse_mode(text: &str) -> Result<u32, String> {
    let digits = text.bytes().all(|b| matches!(b, b'0'..=b'7')) && (1..=5).contains(&text.len());
    match u32::from_str_radix(text, 8) {
        Ok(mode) if digits && mode <= 0o7777 => Ok(mode),
        _ => Err("an octal mode from 0 to 7777, as 0750 or 1777".to_owned()),
    }
}

fn parse_labels(text: &str) -> Result<BTreeMap<String, String>, String> {
    if text.len() > 1024 {
        return Err("at most 1024 bytes".to_owned());
    }
    let mut labels = BTreeMap::new();
    for pair in text.split(',') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let key = Name::new(key).map_err(|e| format!("a label's {e}"))?;
        if key.as_str().starts_with("docker.") {
            return Err("labels that begin with \"docker.\" are the plugin's own".to_owned());
        }
        if value.len() > 256 || value.chars().any(char::is_control) {
            return Err("a label's value has at most 256 bytes and no control characters".to_owned());
        }
        labels.insert(key.to_string(), value.to_owned());
        if labels.len() > 32 {
            return Err("at most 32 labels".to_owned());
        }
    }
    Ok(labels)
}

fn parse_origin(opts: &BTreeMap<String, String>) -> Result<Option<Origin>, OptionError> {
    let template = value(opts, "template", |text| parse_origin_path(text, true))?;
    let from = value(opts, "from", |text| parse_origin_path(text, false))?;
    let together = |text: &str| Err(OptionError::Together(text.to_owned()));
    if template.is_some() && (from.is_some() || opts.contains_key("snapshot")) {
        return together("template cannot be given together with from or snapshot");
    }
    if let Some(template) = template {
        if template.snapshot.is_some() {
            return together(
                "template takes NAME or POOL/NAME; for a snapshot use snapshot=POOL/NAME@SNAPSHOT",
            );
        }
        return Ok(Some(template));
    }
    let Some(snapshot) = opts.get("snapshot") else { return Ok(from) };
    if snapshot.contains('@') {
        let origin = value(opts, "snapshot", |text| parse_origin_path(text, false))?;
        if from.is_some() && from != origin {
            return together("from and snapshot name two different origins: give one of them");
        }
        return Ok(origin);
    }
    let name = value(opts, "snapshot", |text| Name::new(text).map_err(|e| e.to_string()))?;
    match from {
        Some(from) if from.snapshot.is_none() => Ok(Some(Origin { snapshot: name, ..from })),
        Some(_) => together("from names a snapshot already: leave the option snapshot out"),
        None => together("snapshot=SNAPSHOT needs from=NAME beside it; or write snapshot=POOL/NAME@SNAPSHOT"),
    }
}

fn parse_origin_path(text: &str, is_template: bool) -> Result<Origin, String> {
    let (vpool, vdisk, snapshot) = if text.contains('/') {
        let path: VdiskPath = text.parse().map_err(|e: ovs_units::VdiskPathError| e.to_string())?;
        (Some(path.vpool), path.vdisk, path.snapshot)
    } else {
        let (vdisk, snapshot) = match text.split_once('@') {
            Some((vdisk, snapshot)) => (vdisk, Some(Name::new(snapshot).map_err(|e| e.to_string())?)),
            None => (text, None),
        };
        (None, Name::new(vdisk).map_err(|e| e.to_string())?, snapshot)
    };
    Ok(Origin { is_template, vpool, vdisk, snapshot })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opts(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn parse(pairs: &[(&str, &str)]) -> Result<VolumeOptions, OptionError> {
        VolumeOptions::parse(&opts(pairs))
    }

    fn check_refused(pairs: &[(&str, &str)], expected: &[&str]) {
        let text = parse(pairs).expect_err("refused").to_string();
        for part in expected {
            assert!(text.contains(part), "{pairs:?}: {text:?} lacks {part:?}");
        }
        assert!(text.len() < 600, "{text}");
    }

    fn check_origin(pairs: &[(&str, &str)], expected: &str, is_template: bool) {
        let origin = parse(pairs).unwrap().origin.unwrap();
        assert_eq!((origin.to_string().as_str(), origin.is_template), (expected, is_template), "{pairs:?}");
    }

    #[test]
    fn no_options_mean_the_defaults() {
        let options = parse(&[]).unwrap();
        assert_eq!(options.fstype_or_default(), Fstype::Ext4);
        assert_eq!(options.size_bytes, None);
        assert_eq!(options.remembered(), "{}");
    }

    #[test]
    fn an_unknown_option_is_refused_with_the_list() {
        check_refused(&[("bogus", "1")], &["\"bogus\"", "size", "fstype", "mkfs_opts", "template", "vpool"]);
        check_refused(&[("Size", "1GiB")], &["\"Size\""]);
        check_refused(&[(&"k".repeat(1 << 16), "1")], &["kkk"]);
    }

    #[test]
    fn values_outside_their_rule_are_refused_by_name() {
        check_refused(&[("size", "0")], &["size", "4 KiB"]);
        check_refused(&[("size", "1000")], &["size", "4 KiB"]);
        check_refused(&[("size", "65TiB")], &["size", "64TiB"]);
        check_refused(&[("size", "many")], &["size", "many"]);
        check_refused(&[("size", "4MiB")], &["ext4 needs at least 8MiB"]);
        check_refused(&[("size", "299MiB"), ("fstype", "xfs")], &["xfs needs at least 300MiB"]);
        check_refused(&[("fstype", "btrfs")], &["btrfs", "ext4, xfs"]);
        for bad in ["-1", "root", "4294967295", "+1", ""] {
            check_refused(&[("uid", bad)], &["uid"]);
            check_refused(&[("gid", bad)], &["gid"]);
        }
        for bad in ["0999", "10000", "u+x", "-1", "", "+7"] {
            check_refused(&[("mode", bad)], &["mode", "octal"]);
        }
        check_refused(&[("vpool", "../x")], &["vpool"]);
        check_refused(&[("label", "docker.volume=x")], &["plugin's own"]);
        check_refused(&[("label", "=x")], &["label"]);
        check_refused(&[("label", "a=\u{1}")], &["control"]);
        check_refused(&[("mount_opts", "logbufs=8")], &["mount_opts", "logbufs", "noatime"]);
        check_refused(&[("from", "a/b/c")], &["from"]);
        check_refused(&[("template", "../../etc")], &["template"]);
        check_refused(&[("iops", "0")], &["iops=\"0\"", "1 to 100000000"]);
        check_refused(&[("cache", "on")], &["cache=\"on\"", "read-write"]);
    }

    #[test]
    fn origins() {
        check_origin(&[("template", "t")], "t", true);
        check_origin(&[("template", "p/t")], "p/t", true);
        check_origin(&[("from", "v")], "v", false);
        check_origin(&[("from", "v@s")], "v@s", false);
        check_origin(&[("from", "p/v@s")], "p/v@s", false);
        check_origin(&[("snapshot", "p/v@s")], "p/v@s", false);
        check_origin(&[("snapshot", "v@s")], "v@s", false);
        check_origin(&[("from", "v"), ("snapshot", "s")], "v@s", false);
        check_origin(&[("from", "v@s"), ("snapshot", "v@s")], "v@s", false);
        check_refused(&[("snapshot", "s")], &["from=NAME"]);
        check_refused(&[("from", "v@s"), ("snapshot", "s")], &["already"]);
        check_refused(&[("from", "w"), ("snapshot", "v@s")], &["two different"]);
        check_refused(&[("template", "t"), ("from", "v")], &["together"]);
        check_refused(&[("template", "t@s")], &["snapshot="]);
        check_refused(&[("from", "v"), ("mkfs_opts", "-m 1")], &["clone"]);
    }

    #[test]
    fn remembered_options_come_back() {
        let options = parse(&[
            ("size", "1GiB"),
            ("fstype", "xfs"),
            ("mkfs_opts", "-L data"),
            ("mount_opts", "noatime,nodiscard"),
            ("uid", "70"),
            ("gid", "070"),
            ("mode", "700"),
            ("vpool", "fast"),
            ("label", "team=db,tier=1"),
            ("iops", "500"),
            ("write_bandwidth", "20MiB"),
            ("cache", "read-write"),
            ("cache_quota", "1GiB"),
        ])
        .unwrap();
        assert_eq!(VolumeOptions::from_remembered(&options.remembered()).unwrap(), options);
        let clone = parse(&[("from", "v"), ("snapshot", "s")]).unwrap();
        assert_eq!(VolumeOptions::from_remembered(&clone.remembered()).unwrap(), clone);
    }

    fn existing(pairs: &[(&str, &str)], size_bytes: u64) -> ExistingVolume {
        let options = parse(pairs).unwrap();
        let fstype = options.fstype_or_default();
        ExistingVolume { options, size_bytes, vpool: Name::new("default").unwrap(), fstype }
    }

    #[track_caller]
    fn check_differences(first: &[(&str, &str)], second: &[(&str, &str)], expected: &[&str]) {
        let have = existing(first, 10 << 30);
        assert_eq!(parse(second).unwrap().differences(&have), expected, "{first:?} then {second:?}");
    }

    #[test]
    fn a_second_create_is_compared_by_what_it_names() {
        check_differences(&[], &[], &[]);
        check_differences(&[("size", "1GiB"), ("mode", "0700")], &[], &[]);
        check_differences(&[("size", "1GiB")], &[("size", "1024MiB")], &[]);
        check_differences(&[("size", "1GiB")], &[("size", "2GiB")], &["size is 1GiB, asked for 2GiB"]);
        // Grown since: the size that it has now is right too.
        check_differences(&[("size", "1GiB")], &[("size", "10GiB")], &[]);
        check_differences(&[], &[("size", "10GiB"), ("fstype", "ext4"), ("vpool", "default")], &[]);
        check_differences(&[], &[("uid", "0"), ("gid", "0"), ("mode", "755")], &[]);
        check_differences(&[], &[("fstype", "xfs")], &["fstype is ext4, asked for xfs"]);
        check_differences(&[("iops", "5")], &[("iops", "6")], &["iops is 5, asked for 6"]);
        check_differences(&[], &[("from", "v")], &["from is none, asked for v"]);
        check_differences(&[("from", "v@s")], &[("snapshot", "s"), ("from", "v")], &[]);
        check_differences(
            &[("mount_opts", "noatime")],
            &[("mount_opts", "relatime")],
            &["mount_opts is noatime, asked for relatime"],
        );
    }
}
