//! `<state>/vpools.json`: which backends and vPools there are and which host this is, so that a lost registry is
//! rebuilt without anybody's help. Written whole, synced and renamed at every change of a backend or vPool.
//!
//! A backend or preset comes here after it is in the registry and goes before it leaves that. So what is here and not there was
//! lost there, and nothing goes from here because the registry, or this program, cannot read it.

use super::{Volumes, problem::from_catalogue};
use ovs_api::{Problem, ProblemKind};
use ovs_cluster::catalogue::{
    BackendRecord, CatalogueError, FORMAT as RECORD_FORMAT, PresetRecord, Record, State, StoreRecord,
    VpoolRecord, decode,
};
use ovs_units::{Name, VpoolId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write},
    path::Path,
};
use uuid::Uuid;

const FORMAT: u32 = 1;
/// The file is never longer than this.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// The file's contents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Inventory {
    /// 1.
    pub format: u32,
    /// This host, for ever.
    pub host: Uuid,
    /// Backends that are directories and nothing else, as all were once.
    #[serde(default)]
    pub backends: Vec<KnownBackend>,
    /// The other backends, as the registry has them: a newer program's, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<Value>,
    /// Presets, as the registry has them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub presets: Vec<Value>,
    /// vPools.
    #[serde(default)]
    pub vpools: Vec<KnownVpool>,
    /// vPools whose vDisks may not all be known here: the registry was lost, and what it knew of them has not been taken in
    /// whole since. Data in the write buffer of a vDisk that nobody knows is kept while there are any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub incomplete: Vec<VpoolId>,
    /// There was neither a registry nor this file, and yet the write buffer had data of vDisks: it is kept until their
    /// vPools have been recovered.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_strangers: bool,
}

/// A backend.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KnownBackend {
    /// Its UUID.
    pub uuid: Uuid,
    /// Its name.
    pub name: Name,
    /// Its folder.
    pub path: String,
    /// When it was made, milliseconds since 1970.
    pub created_ms: u64,
}

impl KnownBackend {
    /// As the registry has it.
    pub fn record(&self) -> BackendRecord {
        BackendRecord {
            format: RECORD_FORMAT,
            uuid: self.uuid,
            name: self.name.clone(),
            version: 1,
            store: StoreRecord::Dir { path: self.path.clone() },
            labels: Default::default(),
            created_ms: self.created_ms,
            request: serde_json::Value::Null,
        }
    }
}

/// A vPool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KnownVpool {
    /// Its UUID.
    pub id: VpoolId,
    /// Its name.
    pub name: Name,
    /// Its backend.
    pub backend: Uuid,
    /// Its folder on the backend.
    pub namespace: String,
}

impl Inventory {
    /// Of a host that has nothing yet.
    pub fn new(host: Uuid) -> Inventory {
        Inventory {
            format: FORMAT,
            host,
            backends: Vec::new(),
            others: Vec::new(),
            presets: Vec::new(),
            vpools: Vec::new(),
            incomplete: Vec::new(),
            has_strangers: false,
        }
    }

    /// Reads the file; `None` when there is none.
    pub fn load(path: &Path) -> io::Result<Option<Inventory>> {
        let text = match fs::metadata(path) {
            Ok(meta) if meta.len() > FILE_BYTES_MAX => return Err(invalid(path, "it is too long")),
            Ok(_) => fs::read(path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        Inventory::decode(&text).map(Some).map_err(|reason| invalid(path, &reason))
    }

    /// From the file's bytes, or what is wrong with them.
    pub fn decode(text: &[u8]) -> Result<Inventory, String> {
        let inventory: Inventory = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if inventory.format != FORMAT {
            return Err(format!("format {} is not known", inventory.format));
        }
        Ok(inventory)
    }

    /// The backends that this program can read.
    pub fn backend_records(&self) -> Vec<BackendRecord> {
        let plain = self.backends.iter().map(KnownBackend::record);
        plain.chain(self.others.iter().filter_map(readable)).collect()
    }

    /// The presets that this program can read.
    pub fn preset_records(&self) -> Vec<PresetRecord> {
        self.presets.iter().filter_map(readable).collect()
    }

    /// Takes in what the registry has now. What it has not stays as it is.
    fn take_in(&mut self, backends: Vec<BackendRecord>, presets: Vec<PresetRecord>) {
        for record in backends {
            self.forget(record.uuid);
            match record.folder().filter(|_| record.is_plain_dir()) {
                Some(path) => self.backends.push(KnownBackend {
                    uuid: record.uuid,
                    path: path.to_owned(),
                    name: record.name,
                    created_ms: record.created_ms,
                }),
                None => self.others.extend(serde_json::to_value(record)),
            }
        }
        for record in presets {
            self.forget(record.uuid);
            self.presets.extend(serde_json::to_value(record));
        }
    }

    /// Drops a backend or preset that is about to be deleted.
    pub(super) fn forget(&mut self, uuid: Uuid) {
        let is_other = |record: &Value| uuid_of(record) != Some(uuid);
        self.backends.retain(|known| known.uuid != uuid);
        self.others.retain(is_other);
        self.presets.retain(is_other);
    }

    /// Replaces the file. Crash order: the new contents are stable before the name points to them; the name is stable
    /// before this returns.
    pub fn store(&self, path: &Path) -> io::Result<()> {
        let folder = path.parent().ok_or_else(|| invalid(path, "it has no folder"))?;
        let new = path.with_extension("json.new");
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(folder)?.sync_all()
    }
}

fn uuid_of(record: &Value) -> Option<Uuid> {
    Uuid::try_parse(record.get("uuid")?.as_str()?).ok()
}

fn readable<T: Record>(record: &Value) -> Option<T> {
    let read = decode(T::KIND, &serde_json::to_vec(record).ok()?);
    read.inspect_err(|error| tracing::error!(%error, "a record in vpools.json cannot be read")).ok()
}

fn invalid(path: &Path, reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {reason}", path.display()))
}

impl Volumes {
    /// Writes `vpools.json` anew.
    pub(super) async fn write_inventory(&self) -> Result<(), Problem> {
        let _locked = self.locks.lock("inventory").await;
        let mut unread = BTreeSet::new();
        let log = |error: CatalogueError| {
            tracing::error!(%error, "a vPool's record cannot be read");
            if let CatalogueError::Damaged { key, .. } = error {
                unread.insert(key);
            }
        };
        let vpools = self.catalogue.all::<VpoolRecord>(log).await.map_err(from_catalogue)?;
        let mut inventory = self.inventory.borrow().clone();
        inventory
            .incomplete
            .retain(|id| !unread.is_empty() || vpools.iter().any(|stored| stored.record.id == *id));
        inventory.take_in(self.all_backends().await?, self.all_presets().await?);
        inventory.vpools.retain(|known| unread.contains(&VpoolRecord::key_of(known.id.0)));
        inventory.vpools.extend(vpools.into_iter().filter(|stored| stored.record.state == State::Ready).map(
            |stored| KnownVpool {
                id: stored.record.id,
                name: stored.record.name,
                backend: stored.record.backend,
                namespace: stored.record.namespace,
            },
        ));
        self.store_inventory(inventory).await
    }

    pub(super) async fn store_inventory(&self, inventory: Inventory) -> Result<(), Problem> {
        let path = self.settings.paths.state_dir().join("vpools.json");
        let file = inventory.clone();
        let written = tokio::task::spawn_blocking(move || file.store(&path)).await;
        match written {
            Ok(Ok(())) => {
                *self.inventory.borrow_mut() = inventory;
                Ok(())
            }
            Ok(Err(error)) => {
                Err(Problem::new(ProblemKind::Unavailable, format!("vpools.json was not written: {error}")))
            }
            Err(error) => {
                Err(Problem::new(ProblemKind::Internal, format!("vpools.json was not written: {error}")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_stored_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vpools.json");
        assert_eq!(Inventory::load(&path).unwrap(), None);
        let mut inventory = Inventory::new(Uuid::from_u128(1));
        inventory.store(&path).unwrap();
        inventory.vpools.push(KnownVpool {
            id: VpoolId(Uuid::from_u128(2)),
            name: Name::new("default").unwrap(),
            backend: Uuid::from_u128(3),
            namespace: "vpool-x".into(),
        });
        inventory.incomplete.push(VpoolId(Uuid::from_u128(2)));
        inventory.has_strangers = true;
        inventory.store(&path).unwrap();
        assert_eq!(Inventory::load(&path).unwrap(), Some(inventory));
    }

    #[test]
    fn what_the_registry_cannot_tell_stays_until_it_is_deleted() {
        let (plain, newer, preset) = (Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3));
        let text = serde_json::json!({
            "format": 1, "host": Uuid::nil(),
            "backends": [{"uuid": plain, "name": "a", "path": "/a", "created_ms": 7}],
            "others": [{"format": 9, "uuid": newer, "kind": "tape", "reels": 3}],
            "presets": [{"format": 9, "uuid": preset, "keys": "of a newer program"}],
        });
        let mut inventory = Inventory::decode(&serde_json::to_vec(&text).unwrap()).unwrap();
        let readable = inventory.backend_records();
        assert_eq!(readable.iter().map(|record| record.uuid).collect::<Vec<_>>(), [plain]);
        inventory.take_in(Vec::new(), Vec::new());
        let labelled = BackendRecord {
            labels: ovs_cluster::catalogue::Labels { node: Some("n".into()), ..Default::default() },
            ..readable[0].clone()
        };
        inventory.take_in(vec![labelled.clone()], Vec::new());
        let told = serde_json::to_value(&inventory).unwrap();
        assert_eq!((&told["others"][0], &told["presets"]), (&text["others"][0], &text["presets"]));
        assert_eq!(inventory.backend_records(), [labelled], "once, as the registry has it now");
        for uuid in [plain, newer, preset] {
            inventory.forget(uuid);
        }
        assert_eq!(inventory, Inventory::new(Uuid::nil()));
    }

    #[test]
    fn a_damaged_file_is_an_error_and_not_an_empty_host() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vpools.json");
        for bad in ["", "{", "{\"format\":9,\"host\":\"00000000-0000-0000-0000-000000000000\"}"] {
            fs::write(&path, bad).unwrap();
            assert!(Inventory::load(&path).is_err(), "{bad:?}");
        }
    }
}
