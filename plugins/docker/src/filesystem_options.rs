//! Options that go on to mkfs and mount: words from an allow-list with a rule for each value, never a shell.
//!
//! What is allowed cannot weaken the promises of a volume: no file system without a journal, no mount that goes on
//! after an error (`errors=` is always `remount-ro`), no option that names a file or a device.

use crate::options::Fstype;
use std::fmt;

/// The longest text taken; the rest is the user's mistake or worse.
const TEXT_BYTES_MAX: usize = 1024;

/// What a value may be.
#[derive(Clone, Copy)]
enum Rule {
    /// No value.
    Flag,
    /// A whole number in this range.
    Number(u64, u64),
    /// A number that may end in k, m, g, t.
    Size,
    /// One of these words.
    Word(&'static [&'static str]),
    /// A comma separated list of these words, `^` before a word negating it.
    Words { allowed: &'static [&'static str], negatable: &'static [&'static str] },
    /// A file-system label of at most this many characters.
    Label(usize),
    /// A comma separated list of `key=value`.
    Keys(&'static [(&'static str, Rule)]),
}

const EXT4_FEATURES: &[&str] = &[
    "64bit",
    "casefold",
    "dir_index",
    "dir_nlink",
    "ea_inode",
    "encrypt",
    "extent",
    "extra_isize",
    "fast_commit",
    "flex_bg",
    "has_journal",
    "huge_file",
    "inline_data",
    "large_dir",
    "large_file",
    "metadata_csum",
    "metadata_csum_seed",
    "orphan_file",
    "project",
    "quota",
    "resize_inode",
    "sparse_super",
    "sparse_super2",
    "verity",
];
/// `^has_journal` is not here: after a crash nothing would be left to replay. Nor `^extent`.
const EXT4_FEATURES_NEGATABLE: &[&str] = &[
    "64bit",
    "casefold",
    "dir_index",
    "dir_nlink",
    "extra_isize",
    "fast_commit",
    "flex_bg",
    "huge_file",
    "inline_data",
    "large_dir",
    "metadata_csum",
    "metadata_csum_seed",
    "orphan_file",
    "project",
    "quota",
    "resize_inode",
    "sparse_super2",
];

/// Flags of mkfs.ext4. Not `-b`: the device has blocks of 4 KiB.
const MKFS_EXT4: &[(&str, Rule)] = &[
    ("-E", Rule::Keys(&[("stride", Rule::Number(1, 1 << 20)), ("stripe_width", Rule::Number(1, 1 << 20))])),
    ("-G", Rule::Number(1, 1 << 16)),
    ("-I", Rule::Word(&["128", "256", "512", "1024", "2048", "4096"])),
    ("-J", Rule::Keys(&[("size", Rule::Number(4, 40960))])),
    ("-L", Rule::Label(16)),
    ("-N", Rule::Number(11, 1 << 32)),
    ("-O", Rule::Words { allowed: EXT4_FEATURES, negatable: EXT4_FEATURES_NEGATABLE }),
    ("-T", Rule::Word(&["default", "small", "news", "largefile", "largefile4", "big", "huge"])),
    ("-i", Rule::Number(1024, 64 << 20)),
    ("-m", Rule::Number(0, 50)),
];

const BIT: Rule = Rule::Number(0, 1);

/// Flags of mkfs.xfs. Not `-b` and `-s`: the device has blocks of 4 KiB.
const MKFS_XFS: &[(&str, Rule)] = &[
    ("-L", Rule::Label(12)),
    (
        "-d",
        Rule::Keys(&[
            ("agcount", Rule::Number(1, 1_000_000)),
            ("agsize", Rule::Size),
            ("su", Rule::Size),
            ("sw", Rule::Number(1, 1 << 16)),
        ]),
    ),
    (
        "-i",
        Rule::Keys(&[
            ("maxpct", Rule::Number(0, 100)),
            ("size", Rule::Word(&["256", "512", "1024", "2048"])),
            ("sparse", BIT),
            ("nrext64", BIT),
        ]),
    ),
    ("-l", Rule::Keys(&[("size", Rule::Size), ("su", Rule::Size)])),
    (
        "-m",
        Rule::Keys(&[
            ("bigtime", BIT),
            ("finobt", BIT),
            ("inobtcount", BIT),
            ("reflink", BIT),
            ("rmapbt", BIT),
        ]),
    ),
    ("-n", Rule::Keys(&[("size", Rule::Size)])),
];

/// Mount options of every file system.
const MOUNT_ANY: &[(&str, Rule)] = &[
    ("dirsync", Rule::Flag),
    ("discard", Rule::Flag),
    ("lazytime", Rule::Flag),
    ("noatime", Rule::Flag),
    ("nodev", Rule::Flag),
    ("nodiratime", Rule::Flag),
    ("nodiscard", Rule::Flag),
    ("noexec", Rule::Flag),
    ("nosuid", Rule::Flag),
    ("relatime", Rule::Flag),
    ("strictatime", Rule::Flag),
    ("sync", Rule::Flag),
    ("prjquota", Rule::Flag),
    ("usrquota", Rule::Flag),
    ("grpquota", Rule::Flag),
];

/// Not `errors=`, `nobarrier`, `data=writeback`, `noload`, `journal_*`: they undo what a volume promises.
const MOUNT_EXT4: &[(&str, Rule)] = &[
    ("acl", Rule::Flag),
    ("auto_da_alloc", Rule::Flag),
    ("commit", Rule::Number(1, 300)),
    ("data", Rule::Word(&["ordered", "journal"])),
    ("delalloc", Rule::Flag),
    ("dioread_lock", Rule::Flag),
    ("dioread_nolock", Rule::Flag),
    ("inode_readahead_blks", Rule::Number(0, 1 << 16)),
    ("max_batch_time", Rule::Number(0, 1_000_000)),
    ("min_batch_time", Rule::Number(0, 1_000_000)),
    ("nodelalloc", Rule::Flag),
    ("stripe", Rule::Number(0, 1 << 20)),
    ("user_xattr", Rule::Flag),
];

/// Not `norecovery` or `nouuid` (always given), for the same reason.
const MOUNT_XFS: &[(&str, Rule)] = &[
    ("allocsize", Rule::Size),
    ("filestreams", Rule::Flag),
    ("inode32", Rule::Flag),
    ("inode64", Rule::Flag),
    ("largeio", Rule::Flag),
    ("logbsize", Rule::Size),
    ("logbufs", Rule::Number(2, 8)),
    ("noalign", Rule::Flag),
    ("nolargeio", Rule::Flag),
    ("swalloc", Rule::Flag),
    ("wsync", Rule::Flag),
];

/// Options for mkfs, checked: a flag and its value each.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MkfsOptions(Vec<(String, String)>);

impl MkfsOptions {
    /// Checks `-m 1 -i 16384` against the list of that file system's mkfs.
    pub fn parse(fstype: Fstype, text: &str) -> Result<MkfsOptions, String> {
        let list = match fstype {
            Fstype::Ext4 => MKFS_EXT4,
            Fstype::Xfs => MKFS_XFS,
        };
        check_length(text)?;
        let allowed = || {
            let flags: Vec<&str> = list.iter().map(|(flag, _)| *flag).collect();
            format!("for mkfs.{fstype}: {}", flags.join(", "))
        };
        let mut words = text.split_ascii_whitespace();
        let mut options: Vec<(String, String)> = Vec::new();
        while let Some(word) = words.next() {
            let (flag, rule) = list
                .iter()
                .find(|(flag, _)| *flag == word)
                .ok_or_else(|| format!("{word:?} is not among the allowed {}", allowed()))?;
            let value = words.next().ok_or_else(|| format!("{flag} needs a value"))?;
            check_value(flag, *rule, value)?;
            if options.iter().any(|(given, _)| given == flag) {
                return Err(format!("{flag} is given twice"));
            }
            options.push(((*flag).to_owned(), value.to_owned()));
        }
        Ok(MkfsOptions(options))
    }

    /// True when none was given.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of one flag.
    pub fn get(&self, flag: &str) -> Option<&str> {
        self.0.iter().find(|(given, _)| given == flag).map(|(_, value)| value.as_str())
    }

    /// Flags and values, for an argument vector.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(flag, value)| (flag.as_str(), value.as_str()))
    }
}

impl fmt::Display for MkfsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self.0.iter().map(|(flag, value)| format!("{flag} {value}")).collect();
        f.write_str(&words.join(" "))
    }
}

/// Mount options, checked, each `word` or `key=value`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MountOptions(Vec<String>);

impl MountOptions {
    /// Checks `noatime,commit=30`. For a clone whose file system is not known yet (`None`), what either allows.
    pub fn parse(fstype: Option<Fstype>, text: &str) -> Result<MountOptions, String> {
        check_length(text)?;
        let lists: Vec<&[(&str, Rule)]> = match fstype {
            Some(Fstype::Ext4) => vec![MOUNT_ANY, MOUNT_EXT4],
            Some(Fstype::Xfs) => vec![MOUNT_ANY, MOUNT_XFS],
            None => vec![MOUNT_ANY, MOUNT_EXT4, MOUNT_XFS],
        };
        let mut options = Vec::new();
        for word in text.split(',') {
            let (key, value) = word.split_once('=').map_or((word, None), |(key, value)| (key, Some(value)));
            let Some((key, rule)) =
                lists.iter().flat_map(|list| list.iter()).find(|(known, _)| *known == key)
            else {
                let words: Vec<&str> =
                    lists.iter().flat_map(|list| list.iter()).map(|(word, _)| *word).collect();
                return Err(format!("{key:?} is not among the allowed {}", words.join(", ")));
            };
            match (rule, value) {
                (Rule::Flag, None) => {}
                (Rule::Flag, Some(_)) => return Err(format!("{key} takes no value")),
                (_, None) => return Err(format!("{key} needs a value")),
                (rule, Some(value)) => check_value(key, *rule, value)?,
            }
            options.push(word.to_owned());
        }
        Ok(MountOptions(options))
    }

    /// True when none was given.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One option after the other.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

impl fmt::Display for MountOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

fn check_length(text: &str) -> Result<(), String> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(format!("at most {TEXT_BYTES_MAX} bytes"));
    }
    Ok(())
}

fn check_value(of: &str, rule: Rule, value: &str) -> Result<(), String> {
    match rule {
        Rule::Flag => Err(format!("{of} takes no value")),
        Rule::Number(least, most) => match value.parse::<u64>() {
            Ok(number) if (least..=most).contains(&number) && is_digits(value) => Ok(()),
            _ => Err(format!("{of} takes a number from {least} to {most}, not {value:?}")),
        },
        Rule::Size => {
            let digits = value.strip_suffix(['k', 'm', 'g', 't']).unwrap_or(value);
            if is_digits(digits) && digits.len() <= 15 {
                return Ok(());
            }
            Err(format!("{of} takes a size as 64k or 1m, not {value:?}"))
        }
        Rule::Word(words) if words.contains(&value) => Ok(()),
        Rule::Word(words) => Err(format!("{of} takes one of {}, not {value:?}", words.join(", "))),
        Rule::Words { allowed, negatable } => {
            for word in value.split(',') {
                let good = match word.strip_prefix('^') {
                    Some(negated) => negatable.contains(&negated),
                    None => allowed.contains(&word),
                };
                if !good {
                    return Err(format!(
                        "{of} does not take {word:?}; allowed: {}; with '^': {}",
                        allowed.join(", "),
                        negatable.join(", ")
                    ));
                }
            }
            Ok(())
        }
        Rule::Label(most) => {
            let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
            if (1..=most).contains(&value.len()) && value.bytes().all(good) && !value.starts_with('-') {
                return Ok(());
            }
            Err(format!("{of} takes 1 to {most} letters, digits, '_', '.' or '-'"))
        }
        Rule::Keys(keys) => {
            for pair in value.split(',') {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                let Some((_, rule)) = keys.iter().find(|(known, _)| *known == key) else {
                    let known: Vec<&str> = keys.iter().map(|(key, _)| *key).collect();
                    return Err(format!("{of} takes {}=VALUE, not {key:?}", known.join("=VALUE, ")));
                };
                check_value(&format!("{of} {key}"), *rule, value)?;
            }
            Ok(())
        }
    }
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_mkfs(fstype: Fstype, text: &str, good: bool) {
        let parsed = MkfsOptions::parse(fstype, text);
        assert_eq!(parsed.is_ok(), good, "{fstype} {text:?}: {parsed:?}");
        if let Ok(options) = parsed {
            assert_eq!(MkfsOptions::parse(fstype, &options.to_string()).unwrap(), options, "canonical text");
        }
    }

    #[track_caller]
    fn check_mount(fstype: Option<Fstype>, text: &str, good: bool) {
        let parsed = MountOptions::parse(fstype, text);
        assert_eq!(parsed.is_ok(), good, "{fstype:?} {text:?}: {parsed:?}");
    }

    #[test]
    fn mkfs_options_from_the_list_pass() {
        check_mkfs(Fstype::Ext4, "", true);
        check_mkfs(Fstype::Ext4, "-m 0  -i 16384 -L data_1 -T largefile", true);
        check_mkfs(Fstype::Ext4, "-E stride=16,stripe_width=32 -J size=64 -O ^metadata_csum,quota", true);
        check_mkfs(Fstype::Xfs, "-m reflink=1,bigtime=1 -d su=64k,sw=4 -i size=512 -L x", true);
    }

    #[test]
    fn mkfs_options_outside_the_list_do_not() {
        for text in [
            "/dev/sda",
            "-F",
            "-m",
            "-m 99",
            "-m -1",
            "-m +1",
            "-m 1 -m 2",
            "-c 1",
            "-d /etc",
            "-U random",
            "-b 1024",
            "-O ^has_journal",
            "-O ^extent",
            "-O journal_dev",
            "-J device=/dev/sda",
            "-E root_owner=0:0",
            "-E stride=16,discard",
            "-L $(reboot)",
            "-L ../x",
            "-L -x",
            "-L 12345678901234567",
            "--help x",
            "-m 1; reboot",
        ] {
            check_mkfs(Fstype::Ext4, text, false);
        }
        for text in [
            "-f x",
            "-d file=1",
            "-d name=/etc/passwd",
            "-l logdev=/dev/sda",
            "-r rtdev=/dev/sda",
            "-p /etc/x",
        ] {
            check_mkfs(Fstype::Xfs, text, false);
        }
        check_mkfs(Fstype::Ext4, &"-m 1 ".repeat(10_000), false);
    }

    #[test]
    fn mount_options() {
        check_mount(Some(Fstype::Ext4), "noatime,commit=30,data=journal,nodiscard", true);
        check_mount(Some(Fstype::Xfs), "noatime,allocsize=64m,logbufs=8", true);
        check_mount(None, "commit=30", true);
        for text in [
            "",
            "errors=continue",
            "nobarrier",
            "barrier=0",
            "data=writeback",
            "noload",
            "norecovery",
            "commit",
            "commit=0",
            "noatime=1",
            "loop=/dev/loop0",
            "bind",
            "remount",
            "context=x",
            "noatime ",
            "noatime,,",
            "journal_path=/x",
            "sb=1",
        ] {
            check_mount(Some(Fstype::Ext4), text, false);
        }
        check_mount(Some(Fstype::Xfs), "commit=30", false);
        check_mount(Some(Fstype::Xfs), "logdev=/dev/sda", false);
    }
}
