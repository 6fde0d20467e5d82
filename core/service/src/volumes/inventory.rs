//! `<state>/vpools.json`: which backends and vPools there are and which host this is, so that a lost registry is
//! rebuilt without anybody's help. Written whole, synced and renamed at every change of a backend or vPool.

use super::{Volumes, problem::from_catalogue};
use ovs_api::{Problem, ProblemKind};
use ovs_cluster::catalogue::{
    BackendRecord, CatalogueError, FORMAT as RECORD_FORMAT, PresetRecord, State, StoreRecord, VpoolRecord,
};
use ovs_units::{Name, VpoolId};
use serde::{Deserialize, Serialize};
use std::{
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
    /// The other backends, as the registry has them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<BackendRecord>,
    /// Presets, as the registry has them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub presets: Vec<PresetRecord>,
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

fn invalid(path: &Path, reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {reason}", path.display()))
}

impl Volumes {
    /// Writes `vpools.json` anew.
    pub(super) async fn write_inventory(&self) -> Result<(), Problem> {
        let _locked = self.locks.lock("inventory").await;
        let backends = self.all_backends().await?;
        let mut are_all_read = true;
        let log = |error: CatalogueError| {
            tracing::error!(%error, "a vPool's record cannot be read");
            are_all_read = false;
        };
        let vpools = self.catalogue.all::<VpoolRecord>(log).await.map_err(from_catalogue)?;
        let mut inventory = self.inventory.borrow().clone();
        inventory
            .incomplete
            .retain(|id| !are_all_read || vpools.iter().any(|stored| stored.record.id == *id));
        let (plain, others): (Vec<_>, Vec<_>) = backends.into_iter().partition(BackendRecord::is_plain_dir);
        let known = |known: BackendRecord| {
            let path = known.folder()?.to_owned();
            Some(KnownBackend { uuid: known.uuid, name: known.name, path, created_ms: known.created_ms })
        };
        inventory.backends = plain.into_iter().filter_map(known).collect();
        inventory.others = others;
        inventory.presets = self.all_presets().await?;
        inventory.vpools = vpools
            .into_iter()
            .filter(|stored| stored.record.state == State::Ready)
            .map(|stored| KnownVpool {
                id: stored.record.id,
                name: stored.record.name,
                backend: stored.record.backend,
                namespace: stored.record.namespace,
            })
            .collect();
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
    fn a_damaged_file_is_an_error_and_not_an_empty_host() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vpools.json");
        for bad in ["", "{", "{\"format\":9,\"host\":\"00000000-0000-0000-0000-000000000000\"}"] {
            fs::write(&path, bad).unwrap();
            assert!(Inventory::load(&path).is_err(), "{bad:?}");
        }
    }
}
