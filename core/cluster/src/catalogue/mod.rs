//! Names and records: which vPools, backends, vDisks and attachments there are, over the [`Registry`].
//!
//! ```text
//!  vdisk/<uuid>                      the record, JSON with a `format` number       ┐ written in one
//!  vdisk-name/<vpool uuid>/<name>    ─▶ uuid     (unique: made with Revision(0))   │ transaction that
//!  vdisk-child/<parent>/<uuid>       ─▶ uuid     (clones of a vDisk)               │ compares the record's
//!  vdisk-trash/<uuid>                ─▶ uuid     (what waits for its deletion)     ┘ revision
//! ```
//!
//! Every kind of record is kept the same way ([`Record`]): one key for itself, index keys that point to it. A change
//! is one transaction that compares what was read, so that no update is lost and no name is given twice. What takes
//! several steps (a create, a delete) shows in the record's `state`, and start-up finishes or abandons it.
//!
//! Nothing lives here alone: a vDisk's record is also its properties on the backend, a vPool's is an object there; how far a
//! verification has come is found out by beginning another.
//! Not here: anything that touches an engine or a backend (see `ovs-service`).

mod backend;
mod record;
mod verification;

pub use backend::{
    BackendRecord, CompressionRecord, CredentialsRecord, DepartedRecord, DutyRecord, Labels, LayoutRecord,
    PolicyRecord, PresetRecord, StoreRecord, WrappedKey,
};
pub use record::{
    AttachmentRecord, BaseRecord, Counter, FORMAT, IdempotencyRecord, OnFullPolicy, Pending, SnapshotRecord,
    State, TrashRecord, VdiskRecord, VpoolRecord,
};
pub use verification::{PassRecord, VerificationRecord};

use ovs_volume::{Registry, Revision, Transaction, VolumeError};
use serde::{Serialize, de::DeserializeOwned};
use std::rc::Rc;
use thiserror::Error;
use uuid::Uuid;

/// What went wrong, by what the caller does next.
#[derive(Debug, Clone, Error)]
pub enum CatalogueError {
    /// There is no such record.
    #[error("there is no {kind} {name:?}")]
    NotFound {
        /// What was looked for.
        kind: &'static str,
        /// Its name or UUID.
        name: String,
    },
    /// The name (or the UUID) is taken.
    #[error("{kind} {name:?} exists already")]
    Exists {
        /// What was to be made.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// Somebody else changed the record after it was read: read it again and decide again.
    #[error("{kind} {name:?} was changed meanwhile")]
    Changed {
        /// What was to be changed.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The stored bytes are not a record.
    #[error("registry key {key:?} is damaged: {reason}")]
    Damaged {
        /// Where.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The registry itself failed.
    #[error(transparent)]
    Registry(#[from] VolumeError),
}

/// Something with a UUID that the registry keeps, and the keys under which it is found.
pub trait Record: Serialize + DeserializeOwned + Clone {
    /// What it is, in the words of the API: also the prefix of its key.
    const KIND: &'static str;
    /// The newest format of such records that this program reads.
    const FORMAT_MAX: u32 = FORMAT;
    /// Its UUID.
    fn uuid(&self) -> Uuid;
    /// What people call it.
    fn name(&self) -> String;
    /// Keys that point to it; each belongs to one record at a time.
    fn index_keys(&self) -> Vec<String>;
    /// The format number in its bytes.
    fn format(&self) -> u32;

    /// What cannot be, if anything: a record is also read from backends, where anybody may have written it.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    /// The key of the record with this UUID.
    fn key_of(uuid: Uuid) -> String {
        format!("{}/{}", Self::KIND, uuid.hyphenated())
    }
}

/// A record as read, with the revision that a change must still find.
#[derive(Debug, Clone)]
pub struct Stored<T> {
    /// The record.
    pub record: T,
    /// The registry's revision of its key.
    pub revision: Revision,
}

/// The records of this cluster. Cheap to clone; one thread.
#[derive(Clone)]
pub struct Catalogue {
    registry: Rc<dyn Registry>,
}

impl Catalogue {
    /// A catalogue over a registry.
    pub fn new(registry: Rc<dyn Registry>) -> Catalogue {
        Catalogue { registry }
    }

    /// The record with this UUID, if there is one.
    pub async fn find<T: Record>(&self, uuid: Uuid) -> Result<Option<Stored<T>>, CatalogueError> {
        match self.registry.get(&T::key_of(uuid)).await? {
            Some(entry) => {
                Ok(Some(Stored { record: decode(&entry.key, &entry.value)?, revision: entry.revision }))
            }
            None => Ok(None),
        }
    }

    /// The record with this UUID, or `NotFound`.
    pub async fn get<T: Record>(&self, uuid: Uuid) -> Result<Stored<T>, CatalogueError> {
        let missing = || CatalogueError::NotFound { kind: T::KIND, name: uuid.to_string() };
        self.find(uuid).await?.ok_or_else(missing)
    }

    /// The record an index key points to, if it is there.
    pub async fn find_by<T: Record>(&self, index_key: &str) -> Result<Option<Stored<T>>, CatalogueError> {
        match self.registry.get(index_key).await? {
            Some(entry) => self.find(pointer(&entry.key, &entry.value)?).await,
            None => Ok(None),
        }
    }

    /// All records of a kind, in order of their UUIDs. A damaged one is passed to `damaged` and left out: one bad
    /// record never hides the others.
    pub async fn all<T: Record>(
        &self,
        mut damaged: impl FnMut(CatalogueError),
    ) -> Result<Vec<Stored<T>>, CatalogueError> {
        let mut records = Vec::new();
        for entry in self.registry.scan(&format!("{}/", T::KIND)).await? {
            match decode(&entry.key, &entry.value) {
                Ok(record) => records.push(Stored { record, revision: entry.revision }),
                Err(error) => damaged(error),
            }
        }
        Ok(records)
    }

    /// The index keys below `prefix` in order, each with the UUID it points to. What follows `prefix` is the name.
    pub async fn index(&self, prefix: &str) -> Result<Vec<(String, Uuid)>, CatalogueError> {
        let mut found = Vec::new();
        for entry in self.registry.scan(prefix).await? {
            let uuid = pointer(&entry.key, &entry.value)?;
            found.push((entry.key[prefix.len()..].to_owned(), uuid));
        }
        Ok(found)
    }

    /// Adds a record; refused with `Exists` when its UUID or one of its index keys is taken.
    pub async fn insert<T: Record>(&self, record: T) -> Result<Stored<T>, CatalogueError> {
        let key = T::key_of(record.uuid());
        let mut transaction = Transaction::new().compare(&key, Revision(0)).put(&key, encode(&key, &record)?);
        for index in record.index_keys() {
            transaction = transaction.compare(&index, Revision(0)).put(&index, pointer_value(record.uuid()));
        }
        match self.registry.commit(transaction).await? {
            Some(revision) => Ok(Stored { record, revision }),
            None => Err(CatalogueError::Exists { kind: T::KIND, name: record.name() }),
        }
    }

    /// Replaces a record as it was read by a new one; index keys follow. `Changed` when it is not what was read any
    /// more, `Exists` when a new index key belongs to another.
    pub async fn update<T: Record>(&self, old: &Stored<T>, new: T) -> Result<Stored<T>, CatalogueError> {
        let key = T::key_of(old.record.uuid());
        let (before, after) = (old.record.index_keys(), new.index_keys());
        let mut transaction = Transaction::new().compare(&key, old.revision).put(&key, encode(&key, &new)?);
        for index in after.iter().filter(|index| !before.contains(index)) {
            transaction = transaction.compare(index, Revision(0)).put(index, pointer_value(new.uuid()));
        }
        for index in before.iter().filter(|index| !after.contains(index)) {
            transaction = transaction.delete(index);
        }
        match self.registry.commit(transaction).await? {
            Some(revision) => Ok(Stored { record: new, revision }),
            None => Err(self.why_not::<T>(&key, old.revision, new.name()).await?),
        }
    }

    /// Removes whatever is kept under a UUID, if anything: for records without index keys.
    pub async fn discard<T: Record>(&self, uuid: Uuid) -> Result<(), CatalogueError> {
        self.registry.commit(Transaction::new().delete(T::key_of(uuid))).await?;
        Ok(())
    }

    /// Removes a record as it was read, and its index keys.
    pub async fn remove<T: Record>(&self, old: &Stored<T>) -> Result<(), CatalogueError> {
        let key = T::key_of(old.record.uuid());
        let mut transaction = Transaction::new().compare(&key, old.revision).delete(&key);
        for index in old.record.index_keys() {
            transaction = transaction.delete(index);
        }
        match self.registry.commit(transaction).await? {
            Some(_) => Ok(()),
            None => Err(CatalogueError::Changed { kind: T::KIND, name: old.record.name() }),
        }
    }

    /// Adds or replaces a record whatever was there before, and makes its index keys its own: for recovery, where the
    /// backend is the truth. An index key that another record of the kind holds by right is refused with `Exists`.
    pub async fn restore<T: Record>(&self, record: T) -> Result<Stored<T>, CatalogueError> {
        let key = T::key_of(record.uuid());
        let old = self.registry.get(&key).await?;
        let at = old.as_ref().map_or(Revision(0), |entry| entry.revision);
        let mut transaction = Transaction::new().compare(&key, at).put(&key, encode(&key, &record)?);
        if let Some(old) = old.and_then(|entry| decode::<T>(&entry.key, &entry.value).ok()) {
            for index in old.index_keys().iter().filter(|index| !record.index_keys().contains(index)) {
                transaction = transaction.delete(index);
            }
        }
        for index in record.index_keys() {
            let at = match self.registry.get(&index).await? {
                Some(entry) => {
                    let holder = pointer(&entry.key, &entry.value)?;
                    if holder != record.uuid() && self.find::<T>(holder).await?.is_some() {
                        return Err(CatalogueError::Exists { kind: T::KIND, name: record.name() });
                    }
                    entry.revision
                }
                None => Revision(0),
            };
            transaction = transaction.compare(&index, at).put(&index, pointer_value(record.uuid()));
        }
        match self.registry.commit(transaction).await? {
            Some(revision) => Ok(Stored { record, revision }),
            None => Err(CatalogueError::Changed { kind: T::KIND, name: record.name() }),
        }
    }

    async fn why_not<T: Record>(
        &self,
        key: &str,
        expected: Revision,
        name: String,
    ) -> Result<CatalogueError, CatalogueError> {
        let now = self.registry.get(key).await?.map_or(Revision(0), |entry| entry.revision);
        Ok(if now == expected {
            CatalogueError::Exists { kind: T::KIND, name }
        } else {
            CatalogueError::Changed { kind: T::KIND, name }
        })
    }
}

fn pointer_value(uuid: Uuid) -> Vec<u8> {
    uuid.hyphenated().to_string().into_bytes()
}

/// The UUID that an index key points to.
pub fn pointer(key: &str, value: &[u8]) -> Result<Uuid, CatalogueError> {
    Uuid::try_parse_ascii(value)
        .map_err(|error| CatalogueError::Damaged { key: key.to_owned(), reason: error.to_string() })
}

fn encode<T: Record>(key: &str, record: &T) -> Result<Vec<u8>, CatalogueError> {
    serde_json::to_vec(record)
        .map_err(|error| CatalogueError::Damaged { key: key.to_owned(), reason: error.to_string() })
}

/// A record from its JSON. A format from the future is refused, not guessed.
pub fn decode<T: Record>(key: &str, value: &[u8]) -> Result<T, CatalogueError> {
    let damaged = |reason: String| CatalogueError::Damaged { key: key.to_owned(), reason };
    let record: T = serde_json::from_slice(value).map_err(|error| damaged(error.to_string()))?;
    if record.format() == 0 || record.format() > T::FORMAT_MAX {
        return Err(damaged(format!(
            "format {} is not known (this program knows 1 to {})",
            record.format(),
            T::FORMAT_MAX
        )));
    }
    record.check().map_err(damaged)?;
    Ok(record)
}

#[cfg(test)]
mod tests;
