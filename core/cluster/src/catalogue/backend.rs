//! What the registry keeps of backends and presets, and what each drive of a vPool keeps of them: the layout.
//!
//! A plain directory is of format 1, as every backend was once; everything else is of format 2, so that a program that knows
//! directories alone refuses it instead of taking it for one. A composite whose drives do not all serve is of format 3: a program
//! that takes every drive for one that serves would believe what a lost one says when it comes back.

use super::{Record, record::check_counter};
use ovs_units::{Name, VpoolId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use uuid::Uuid;

/// Where objects live.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackendRecord {
    /// 1 to 3, see [`BackendRecord::format_of`].
    pub format: u32,
    /// Its UUID. As a drive it is known by it for ever: where fragments are follows from it.
    pub uuid: Uuid,
    /// Its name.
    pub name: Name,
    /// Counts the changes of this record.
    pub version: u64,
    /// What it is made of.
    #[serde(flatten)]
    pub store: StoreRecord,
    /// What it is as a drive of another backend.
    #[serde(default, skip_serializing_if = "Labels::is_plain")]
    pub labels: Labels,
    /// When it was made, milliseconds since 1970.
    pub created_ms: u64,
    /// The request that made it.
    #[serde(default)]
    pub request: Value,
}

/// What a backend is made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum StoreRecord {
    /// A directory.
    Dir {
        /// Its folder.
        path: String,
    },
    /// An object store.
    Remote {
        /// Which, and where, in the words of `ovs-remote`.
        store: Value,
        /// Where its credentials are; never themselves.
        credentials: CredentialsRecord,
        /// What it did when it was tried, in the words of `ovs-remote`.
        #[serde(default)]
        probe: Value,
    },
    /// Other backends.
    Composite {
        /// They.
        drives: Vec<Uuid>,
        /// How objects are spread over them.
        preset: Uuid,
        /// Of these drives, those that do not serve.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        duties: BTreeMap<Uuid, DutyRecord>,
        /// Those that are drives no more. Where fragments are follows from them for ever.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        departed: Vec<DepartedRecord>,
    },
}

/// What a drive is for that does not serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DutyRecord {
    /// It is read and takes nothing new; it goes when nothing on it is needed any more.
    Leaving,
    /// What was on it is gone, whatever it has when it comes back.
    Lost,
    /// The same; and what cannot be made again of it is given up with it.
    GivenUp,
}

impl DutyRecord {
    /// Is it never asked for anything?
    pub fn is_lost(self) -> bool {
        matches!(self, DutyRecord::Lost | DutyRecord::GivenUp)
    }
}

/// A backend that was a drive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DepartedRecord {
    /// Its UUID.
    pub uuid: Uuid,
    /// Its node, as a drive.
    pub node: String,
    /// Its site, as a drive.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub site: String,
    /// Its weight, as a drive.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub weight: u32,
    /// What a vPool has on it is not removed yet: this part of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_behind: Option<String>,
    /// It was lost: what is on it is old, and is never to be seen again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub was_lost: bool,
}

/// Where credentials are: `file:PATH` or `env:NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialsRecord {
    /// Of the user, account or access key; Google's stores have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Of what proves it.
    pub secret: String,
}

/// What a backend is as a drive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Labels {
    /// What else is lost when it is; where it follows from what it is made of: not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// Its share beside the others'.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub weight: u32,
}

fn one() -> u32 {
    1
}

fn is_one(weight: &u32) -> bool {
    *weight == 1
}

impl Default for Labels {
    fn default() -> Labels {
        Labels { node: None, site: None, weight: 1 }
    }
}

impl Labels {
    fn is_plain(&self) -> bool {
        *self == Labels::default()
    }
}

impl Record for BackendRecord {
    const KIND: &'static str = "backend";
    const FORMAT_MAX: u32 = Self::FORMAT_OF_DUTIES;

    fn uuid(&self) -> Uuid {
        self.uuid
    }

    fn name(&self) -> String {
        self.name.to_string()
    }

    fn index_keys(&self) -> Vec<String> {
        vec![BackendRecord::name_key(&self.name)]
    }

    fn format(&self) -> u32 {
        self.format
    }

    fn check(&self) -> Result<(), String> {
        check_counter("version", self.version)?;
        if self.labels.weight == 0 {
            return Err("weight cannot be 0".into());
        }
        let StoreRecord::Composite { drives, duties, departed, .. } = &self.store else { return Ok(()) };
        if drives.is_empty() || drives.contains(&self.uuid) {
            return Err("it has no drives, or is one of its own".into());
        }
        if let Some(stranger) = duties.keys().find(|uuid| !drives.contains(uuid)) {
            return Err(format!("{stranger} has a duty and is no drive"));
        }
        for (number, gone) in departed.iter().enumerate() {
            if drives.contains(&gone.uuid) || departed[..number].iter().any(|other| other.uuid == gone.uuid) {
                return Err(format!("drive {} is there twice", gone.uuid));
            }
            if gone.weight == 0 {
                return Err("weight cannot be 0".into());
            }
        }
        Ok(())
    }
}

impl BackendRecord {
    /// The index of names.
    pub const NAMES: &'static str = "backend-name/";

    /// The index key of a name.
    pub fn name_key(name: &Name) -> String {
        format!("{}{name}", Self::NAMES)
    }

    /// The format of a composite and of what it is made of: programs that know directories alone refuse it.
    pub const FORMAT_OF_PARTS: u32 = 2;

    /// The format of a composite with drives that do not serve, or are no more.
    pub const FORMAT_OF_DUTIES: u32 = 3;

    /// The format of a record about such a store, which is part of nothing yet.
    pub fn format_of(store: &StoreRecord) -> u32 {
        match store {
            StoreRecord::Dir { .. } => 1,
            StoreRecord::Composite { duties, departed, .. } if !duties.is_empty() || !departed.is_empty() => {
                Self::FORMAT_OF_DUTIES
            }
            StoreRecord::Remote { .. } | StoreRecord::Composite { .. } => Self::FORMAT_OF_PARTS,
        }
    }

    /// Its folder, if it is one.
    pub fn folder(&self) -> Option<&str> {
        match &self.store {
            StoreRecord::Dir { path } => Some(path),
            StoreRecord::Remote { .. } | StoreRecord::Composite { .. } => None,
        }
    }

    /// The backends that it is made of.
    pub fn drives(&self) -> &[Uuid] {
        match &self.store {
            StoreRecord::Composite { drives, .. } => drives,
            StoreRecord::Dir { .. } | StoreRecord::Remote { .. } => &[],
        }
    }

    /// What one of its drives is for, unless it serves.
    pub fn duty(&self, drive: Uuid) -> Option<DutyRecord> {
        match &self.store {
            StoreRecord::Composite { duties, .. } => duties.get(&drive).copied(),
            StoreRecord::Dir { .. } | StoreRecord::Remote { .. } => None,
        }
    }

    /// Those of its drives that are asked for anything.
    pub fn drives_asked(&self) -> impl Iterator<Item = Uuid> + '_ {
        self.drives().iter().copied().filter(|uuid| !self.duty(*uuid).is_some_and(DutyRecord::is_lost))
    }

    /// The backends that were drives of it.
    pub fn departed(&self) -> &[DepartedRecord] {
        match &self.store {
            StoreRecord::Composite { departed, .. } => departed,
            StoreRecord::Dir { .. } | StoreRecord::Remote { .. } => &[],
        }
    }

    /// A directory without labels: what was the only kind once.
    pub fn is_plain_dir(&self) -> bool {
        self.folder().is_some() && self.labels.is_plain()
    }
}

/// How frames are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CompressionRecord {
    /// Not.
    None,
    /// LZ4.
    Lz4,
    /// Zstandard.
    Zstd,
}

/// k data and m parity fragments, acknowledged once c are written, at most x per node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRecord {
    /// Data fragments.
    pub k: u8,
    /// Parity fragments.
    pub m: u8,
    /// Stored before a put is acknowledged.
    pub c: u8,
    /// On one node at most.
    pub x: u32,
}

/// A key that objects are encrypted under, itself encrypted under the one that [`PresetRecord::key`] names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrappedKey {
    /// As fragments name it; from 1.
    pub number: u32,
    /// Nonce, key and tag of AES-256-GCM in hexadecimal digits.
    pub wrapped: String,
}

/// How objects are stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PresetRecord {
    /// See [`super::FORMAT`].
    pub format: u32,
    /// Its UUID.
    pub uuid: Uuid,
    /// Its name.
    pub name: Name,
    /// Counts the changes of this record.
    pub version: u64,
    /// How frames are compressed.
    pub compression: CompressionRecord,
    /// Policies, the best first.
    pub policies: Vec<PolicyRecord>,
    /// A data fragment has so many bytes at most.
    pub fragment_bytes: u32,
    /// Where the key is that `keys` are encrypted under (`file:PATH` or `env:NAME`); none: no encryption.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What objects are encrypted under: the last one; the others are for what was put before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<WrappedKey>,
    /// Which of them new objects are encrypted under instead, as long as not every drive has the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encrypts_under: Option<u32>,
    /// What other programs keep here.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// When it was made, milliseconds since 1970.
    pub created_ms: u64,
    /// The request that made it.
    #[serde(default)]
    pub request: Value,
}

impl Record for PresetRecord {
    const KIND: &'static str = "preset";

    fn uuid(&self) -> Uuid {
        self.uuid
    }

    fn name(&self) -> String {
        self.name.to_string()
    }

    fn index_keys(&self) -> Vec<String> {
        vec![PresetRecord::name_key(&self.name)]
    }

    fn format(&self) -> u32 {
        self.format
    }

    fn check(&self) -> Result<(), String> {
        check_counter("version", self.version)?;
        if self.key.is_some() == self.keys.is_empty() {
            return Err("an encrypted preset has keys and says where theirs is".into());
        }
        if self.keys.iter().any(|key| key.number == 0) {
            return Err("keys are numbered from 1".into());
        }
        if self.encrypts_under.is_some_and(|number| self.keys.iter().all(|key| key.number != number)) {
            return Err("the key that it encrypts under is none of its own".into());
        }
        if self.policies.is_empty() {
            return Err("it has no policy".into());
        }
        // Sums and differences of these are taken without asking again.
        for PolicyRecord { k, m, c, x } in &self.policies {
            let fragments = u16::from(*k) + u16::from(*m);
            if *k == 0 || c < k || u16::from(*c) > fragments || fragments > 255 || *x == 0 {
                return Err(format!("policy {k},{m},{c},{x} cannot be"));
            }
        }
        Ok(())
    }
}

impl PresetRecord {
    /// The index of names.
    pub const NAMES: &'static str = "preset-name/";

    /// The index key of a name.
    pub fn name_key(name: &Name) -> String {
        format!("{}{name}", Self::NAMES)
    }

    /// The number of the key that new objects are encrypted under.
    pub fn key_in_use(&self) -> Option<u32> {
        self.encrypts_under.or_else(|| self.keys.last().map(|key| key.number))
    }

    /// It has all keys of the other, an older record of the same preset.
    pub fn is_newer_than(&self, other: &PresetRecord) -> bool {
        let has = |key: &WrappedKey| self.keys.iter().any(|own| own.number == key.number);
        let is_same = (self.uuid, &self.policies) == (other.uuid, &other.policies);
        is_same && self.version > other.version && other.keys.iter().all(has)
    }
}

/// What each drive of a vPool has of the whole, as an object of its own and not encrypted: the drives and the presets that
/// the vPool's objects are read with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayoutRecord {
    /// See [`super::FORMAT`].
    pub format: u32,
    /// The vPool.
    pub vpool: VpoolId,
    /// Its name when this was written.
    pub name: Name,
    /// The backend that it is on.
    pub backend: Uuid,
    /// That one, and all that it is made of.
    pub backends: Vec<BackendRecord>,
    /// Their presets.
    pub presets: Vec<PresetRecord>,
}

impl Record for LayoutRecord {
    const KIND: &'static str = "layout";

    fn uuid(&self) -> Uuid {
        self.vpool.0
    }

    fn name(&self) -> String {
        self.name.to_string()
    }

    fn index_keys(&self) -> Vec<String> {
        Vec::new()
    }

    fn format(&self) -> u32 {
        self.format
    }

    fn check(&self) -> Result<(), String> {
        for backend in &self.backends {
            if backend.format == 0 || backend.format > BackendRecord::FORMAT_MAX {
                return Err(format!("backend {}: format {} is not known", backend.name, backend.format));
            }
            backend.check().map_err(|reason| format!("backend {}: {reason}", backend.name))?;
        }
        for preset in &self.presets {
            if preset.format == 0 || preset.format > PresetRecord::FORMAT_MAX {
                return Err(format!("preset {}: format {} is not known", preset.name, preset.format));
            }
            preset.check().map_err(|reason| format!("preset {}: {reason}", preset.name))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::decode;
    use serde_json::json;

    fn read(record: &Value) -> Result<BackendRecord, String> {
        decode("backend/x", &serde_json::to_vec(record).unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_directory_is_what_it_always_was() {
        let stored = json!({
            "format": 1, "uuid": Uuid::nil(), "name": "nas", "version": 1, "kind": "dir", "path": "/srv/nas",
            "created_ms": 7, "request": null,
        });
        let record = read(&stored).unwrap();
        assert_eq!((record.folder(), record.is_plain_dir()), (Some("/srv/nas"), true));
        assert_eq!(serde_json::to_value(&record).unwrap(), stored, "and an older program reads it");
        let mut newer = stored.clone();
        newer["colour"] = json!("of a member that this program does not know");
        assert_eq!(read(&newer).unwrap(), record);
    }

    #[test]
    fn what_is_made_of_others_is_of_a_format_of_its_own() {
        let drives = [Uuid::from_u128(1), Uuid::from_u128(2)];
        let stored = json!({
            "format": 2, "uuid": Uuid::nil(), "name": "all", "version": 1, "kind": "composite",
            "drives": drives, "preset": Uuid::from_u128(9), "labels": {"site": "b", "weight": 3}, "created_ms": 7, "request": null,
        });
        let record = read(&stored).unwrap();
        assert_eq!((record.drives(), record.labels.weight), (&drives[..], 3));
        assert_eq!(BackendRecord::format_of(&record.store), 2);
        assert_eq!(serde_json::to_value(&record).unwrap(), stored);
        for (member, bad, expected) in [
            ("format", json!(4), "format 4 is not known"),
            ("kind", json!("tape"), "tape"),
            ("drives", json!([]), "no drives"),
            ("drives", json!([Uuid::nil()]), "one of its own"),
            ("labels", json!({"weight": 0}), "weight"),
        ] {
            let mut record = stored.clone();
            record[member] = bad;
            let refused = read(&record).unwrap_err();
            assert!(refused.contains(expected), "{refused}");
        }
    }

    #[test]
    fn a_composite_with_drives_that_do_not_serve_is_of_a_format_of_its_own() {
        let [a, b, gone] = [1, 2, 3].map(Uuid::from_u128);
        let mut stored = json!({
            "format": 3, "uuid": Uuid::nil(), "name": "all", "version": 4, "kind": "composite", "drives": [a, b],
            "preset": Uuid::from_u128(9), "duties": {b.to_string(): "leaving"},
            "departed": [{"uuid": gone, "node": "n", "was_lost": true}], "created_ms": 7, "request": null,
        });
        let record = read(&stored).unwrap();
        assert_eq!((record.duty(a), record.duty(b)), (None, Some(DutyRecord::Leaving)));
        assert_eq!((record.departed()[0].uuid, record.departed()[0].weight), (gone, 1));
        assert_eq!(BackendRecord::format_of(&record.store), 3);
        assert_eq!(serde_json::to_value(&record).unwrap(), stored);
        let departed = |uuids: &[Uuid]| {
            json!(uuids.iter().map(|uuid| json!({"uuid": uuid, "node": "n"})).collect::<Vec<_>>())
        };
        for (member, bad, expected) in [
            ("duties", json!({gone.to_string(): "lost"}), "no drive"),
            ("duties", json!({a.to_string(): "resting"}), "resting"),
            ("departed", departed(&[b]), "twice"),
            ("departed", departed(&[gone, gone]), "twice"),
            ("departed", json!([{"uuid": gone, "node": "n", "weight": 0}]), "weight"),
        ] {
            let mut record = stored.clone();
            record[member] = bad;
            let refused = read(&record).unwrap_err();
            assert!(refused.contains(expected), "{refused}");
        }
        stored["duties"] = json!({a.to_string(): "lost"});
        assert_eq!(read(&stored).unwrap().drives_asked().collect::<Vec<_>>(), [b]);
        let StoreRecord::Composite { drives, preset, .. } = record.store else { panic!("it is one") };
        let whole = StoreRecord::Composite { drives, preset, duties: BTreeMap::new(), departed: Vec::new() };
        assert_eq!(BackendRecord::format_of(&whole), 2, "once all serve, as ever");
    }

    #[test]
    fn a_policy_that_cannot_be_is_damage() {
        let stored = json!({
            "format": 1, "uuid": Uuid::nil(), "name": "p", "version": 1, "compression": "none", "fragment_bytes": 32768,
            "policies": [{"k": 4, "m": 2, "c": 5, "x": 2}], "created_ms": 7, "request": null,
        });
        let read = |record: &Value| decode::<PresetRecord>("preset/x", &serde_json::to_vec(record).unwrap());
        read(&stored).unwrap();
        for (k, m, c, x) in
            [(4, 2, 3, 1), (4, 2, 7, 1), (0, 2, 1, 1), (4, 2, 5, 0), (200, 100, 200, 1), (255, 255, 0, 1)]
        {
            let mut record = stored.clone();
            record["policies"][0] = json!({"k": k, "m": m, "c": c, "x": x});
            let refused = read(&record).unwrap_err().to_string();
            assert!(refused.contains(&format!("policy {k},{m},{c},{x} cannot be")), "{refused}");
        }
        let mut record = stored.clone();
        record["key"] = json!("file:/k");
        record["keys"] = json!([{"number": 1, "wrapped": "00"}, {"number": 2, "wrapped": "01"}]);
        assert_eq!(read(&record).unwrap().key_in_use(), Some(2));
        (record["encrypts_under"], record["labels"]) = (json!(1), json!({}));
        let waiting = read(&record).unwrap();
        assert_eq!(waiting.key_in_use(), Some(1));
        assert_eq!(serde_json::to_value(&waiting).unwrap(), record);
        record["encrypts_under"] = json!(3);
        assert!(read(&record).unwrap_err().to_string().contains("none of its own"));
        for (member, bad) in [("policies", json!([])), ("keys", json!([{"number": 0, "wrapped": ""}]))] {
            let mut record = stored.clone();
            record[member] = bad;
            read(&record).unwrap_err();
        }
    }
}
