//! What the words on the command line name: vDisks, snapshots, sizes, times. Each says, when it is refused, what was
//! given and what is allowed; clap adds the name of the argument.

use ovs_api::{LabelSelector, Labels, Policy, SnapshotRef, VdiskRef};
use ovs_units::{ByteCount, CLUSTER_SIZE_BYTES, Name, VDISK_SIZE_BYTES_MAX, VdiskPath, parse_size};
use std::{fmt, str::FromStr};

/// A vDisk that exists: `POOL/NAME` or its UUID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VdiskTarget(pub VdiskRef);

/// A snapshot that exists or is to be taken: `POOL/NAME@SNAPSHOT`; the vDisk may be a UUID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotTarget {
    /// Whose.
    pub vdisk: VdiskTarget,
    /// Which.
    pub snapshot: Name,
}

/// A vDisk as it is now, or one of its snapshots: `POOL/NAME[@SNAPSHOT]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceTarget {
    /// Whose.
    pub vdisk: VdiskTarget,
    /// Which; none: as it is now.
    pub snapshot: Option<Name>,
}

/// A vDisk to be made: `POOL/NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVdisk {
    /// The vPool.
    pub vpool: Name,
    /// The name in it.
    pub name: Name,
}

impl FromStr for SourceTarget {
    type Err = String;
    fn from_str(text: &str) -> Result<SourceTarget, String> {
        let (vdisk, snapshot) = match text.split_once('@') {
            Some((vdisk, snapshot)) => (vdisk, Some(Name::new(snapshot).map_err(|error| error.to_string())?)),
            None => (text, None),
        };
        let vdisk = match vdisk.parse() {
            Ok(id) => VdiskRef::Id(id),
            Err(_) => {
                let path: VdiskPath = vdisk.parse().map_err(|error| format!("{error}, nor a UUID"))?;
                VdiskRef::Name { vpool: path.vpool, name: path.vdisk }
            }
        };
        Ok(SourceTarget { vdisk: VdiskTarget(vdisk), snapshot })
    }
}

impl FromStr for VdiskTarget {
    type Err = String;
    fn from_str(text: &str) -> Result<VdiskTarget, String> {
        let source: SourceTarget = text.parse()?;
        match source.snapshot {
            None => Ok(source.vdisk),
            Some(_) => Err("this names a snapshot, allowed is a vDisk: POOL/NAME".into()),
        }
    }
}

impl FromStr for SnapshotTarget {
    type Err = String;
    fn from_str(text: &str) -> Result<SnapshotTarget, String> {
        let source: SourceTarget = text.parse()?;
        match source.snapshot {
            Some(snapshot) => Ok(SnapshotTarget { vdisk: source.vdisk, snapshot }),
            None => Err("this names a vDisk, allowed is a snapshot: POOL/NAME@SNAPSHOT".into()),
        }
    }
}

impl FromStr for NewVdisk {
    type Err = String;
    fn from_str(text: &str) -> Result<NewVdisk, String> {
        let path: VdiskPath = text.parse().map_err(|error| format!("{error}"))?;
        match path.snapshot {
            None => Ok(NewVdisk { vpool: path.vpool, name: path.vdisk }),
            Some(_) => Err("this names a snapshot, allowed is a vDisk: POOL/NAME".into()),
        }
    }
}

impl fmt::Display for VdiskTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            VdiskRef::Id(id) => id.fmt(f),
            VdiskRef::Name { vpool, name } => write!(f, "{vpool}/{name}"),
        }
    }
}

impl fmt::Display for SnapshotTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.vdisk, self.snapshot)
    }
}

impl fmt::Display for SourceTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.snapshot {
            Some(snapshot) => write!(f, "{}@{snapshot}", self.vdisk),
            None => self.vdisk.fmt(f),
        }
    }
}

impl fmt::Display for NewVdisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.vpool, self.name)
    }
}

impl From<NewVdisk> for VdiskRef {
    fn from(new: NewVdisk) -> VdiskRef {
        VdiskRef::Name { vpool: new.vpool, name: new.name }
    }
}

impl SnapshotTarget {
    /// As the RPC names it: text of the form of a UUID is a UUID there.
    pub fn reference(&self) -> SnapshotRef {
        self.snapshot.as_str().parse().unwrap_or_else(|_| SnapshotRef::Name(self.snapshot.clone()))
    }
}

/// The size of a vDisk.
pub fn vdisk_size(text: &str) -> Result<ByteCount, String> {
    let size = parse_size(text).map_err(|error| error.to_string())?;
    if size == 0 || !size.is_multiple_of(CLUSTER_SIZE_BYTES) || size > VDISK_SIZE_BYTES_MAX {
        return Err(format!("size {text:?} is not allowed: multiples of 4KiB, from 4KiB to 64TiB"));
    }
    Ok(ByteCount(size))
}

/// Any number of bytes.
pub fn byte_count(text: &str) -> Result<ByteCount, String> {
    parse_size(text).map(ByteCount).map_err(|error| error.to_string())
}

/// Milliseconds from `500ms`, `30s`, `5m`, `2h`, `7d`.
pub fn duration_ms(text: &str) -> Result<u64, String> {
    let refused = || {
        let given: String = text.chars().take(40).collect();
        format!("time {given:?} is not a number with a unit: write 500ms, 30s, 5m, 2h or 7d")
    };
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(refused)?;
    let (number, unit) = text.split_at(unit_at);
    let factor: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(refused()),
    };
    let number: u64 = number.parse().map_err(|_| refused())?;
    number.checked_mul(factor).ok_or_else(refused)
}

/// `KEY=VALUE`.
pub fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) =
        text.split_once('=').ok_or_else(|| format!("label {text:?} is not of the form KEY=VALUE"))?;
    let one = Labels([(key.to_owned(), value.to_owned())].into());
    one.check().map_err(|problem| problem.detail)?;
    Ok((key.to_owned(), value.to_owned()))
}

/// `KEY` or `KEY=VALUE`.
pub fn label_selector(text: &str) -> Result<LabelSelector, String> {
    text.parse().map_err(|problem: ovs_api::Problem| problem.detail)
}

/// `K,M,C,X`.
pub fn policy(text: &str) -> Result<Policy, String> {
    let refused = || format!("policy {text:?} is not of the form K,M,C,X (four numbers from 0 to 255)");
    let numbers: Result<Vec<u8>, _> = text.split(',').map(|number| number.trim().parse()).collect();
    match numbers.map_err(|_| refused())?[..] {
        [k, m, c, x] => Ok(Policy { k, m, c, x }),
        _ => Err(refused()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: FromStr<Err = String> + fmt::Display>(text: &str, expected: Result<&str, &str>) {
        match (text.parse::<T>(), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found.to_string(), expected),
            (Err(found), Err(expected)) => assert!(found.contains(expected), "{text:?}: {found}"),
            (Ok(found), Err(_)) => panic!("{text:?} was taken as {found}"),
            (Err(error), Ok(_)) => panic!("{text:?}: {error}"),
        }
    }

    const UUID: &str = "67e55044-10b1-426f-9247-bb680e5fe0c8";

    #[test]
    fn vdisks_and_snapshots() {
        check::<VdiskTarget>("default/x", Ok("default/x"));
        check::<VdiskTarget>(UUID, Ok(UUID));
        check::<VdiskTarget>("default/x@s", Err("POOL/NAME"));
        check::<VdiskTarget>("x", Err("\"x\" is not of the form POOL/NAME"));
        check::<VdiskTarget>("default/../x", Err("\"../x\""));
        check::<SnapshotTarget>("default/x@s", Ok("default/x@s"));
        check::<SnapshotTarget>(&format!("{UUID}@s"), Ok(&format!("{UUID}@s")));
        check::<SnapshotTarget>("default/x", Err("POOL/NAME@SNAPSHOT"));
        check::<SnapshotTarget>("default/x@", Err("name \"\" is not allowed"));
        check::<SourceTarget>("default/x", Ok("default/x"));
        check::<SourceTarget>("default/x@s@t", Err("name \"s@t\""));
        check::<NewVdisk>("default/x", Ok("default/x"));
        check::<NewVdisk>(UUID, Err("POOL/NAME"));
        check::<NewVdisk>("default/x@s", Err("allowed is a vDisk"));
    }

    #[test]
    fn sizes() {
        assert_eq!(vdisk_size("10GiB"), Ok(ByteCount(10 << 30)));
        assert_eq!(vdisk_size("64TiB"), Ok(ByteCount(64 << 40)));
        for bad in ["0", "4097", "65TiB", "1 parsec"] {
            let message = vdisk_size(bad).unwrap_err();
            assert!(message.contains(bad), "{message}");
        }
    }

    #[test]
    fn times() {
        for (text, expected) in [("0s", 0), ("500ms", 500), ("30s", 30_000), ("7d", 604_800_000)] {
            assert_eq!(duration_ms(text), Ok(expected), "{text}");
        }
        for bad in ["", "30", "s", "-1s", "1.5h", "1w", "99999999999999999999d", "9999999999999999d"] {
            assert!(duration_ms(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn labels_and_policies() {
        assert_eq!(label("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(label("a").is_err() && label("=b").is_err());
        assert_eq!(policy("4,2,5,1"), Ok(Policy { k: 4, m: 2, c: 5, x: 1 }));
        assert!(policy("4,2,5").is_err() && policy("4,2,5,256").is_err());
    }
}
