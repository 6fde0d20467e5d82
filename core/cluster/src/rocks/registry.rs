//! [`Registry`] over RocksDB.

use super::database::{Database, Family, Writer, run};
use futures_util::future::LocalBoxFuture;
use ovs_units::planted;
use ovs_volume::{Entry, Registry, Revision, Transaction, VolumeError};
use rocksdb::{Direction, Error, IteratorMode, WriteBatch};
use std::sync::Arc;

const LAST_REVISION: &str = "last_revision";

/// The host's registry. Cheap to clone.
#[derive(Debug, Clone)]
pub struct RocksRegistry {
    database: Arc<Database>,
}

impl RocksRegistry {
    pub(super) fn new(database: Arc<Database>) -> RocksRegistry {
        RocksRegistry { database }
    }
}

impl Registry for RocksRegistry {
    fn get(&self, key: &str) -> LocalBoxFuture<'_, Result<Option<Entry>, VolumeError>> {
        let key = key.to_owned();
        Box::pin(run(&self.database, move |database| {
            let bytes = database.read(|view| view.get(Family::Registry, key.as_bytes()))?;
            bytes.map(|bytes| decode(key.into_bytes(), bytes)).transpose()
        }))
    }

    fn scan(&self, prefix: &str) -> LocalBoxFuture<'_, Result<Vec<Entry>, VolumeError>> {
        let prefix = prefix.to_owned();
        Box::pin(run(&self.database, move |database| {
            let found = database.read(|view| {
                let from = IteratorMode::From(prefix.as_bytes(), Direction::Forward);
                let keys = view.db().iterator_cf(view.family(Family::Registry), from);
                let is_wanted = |entry: &Result<(Box<[u8]>, _), _>| {
                    entry.as_ref().map_or(true, |(key, _)| key.starts_with(prefix.as_bytes()))
                };
                keys.take_while(is_wanted).collect::<Result<Vec<_>, Error>>()
            })?;
            found.into_iter().map(|(key, bytes)| decode(key.into(), bytes.into())).collect()
        }))
    }

    fn commit(&self, transaction: Transaction) -> LocalBoxFuture<'_, Result<Option<Revision>, VolumeError>> {
        Box::pin(run(&self.database, move |database| database.write(|writer| commit(writer, transaction))))
    }
}

/// Compares and writes while nobody else writes.
fn commit(writer: &Writer<'_>, transaction: Transaction) -> Result<Option<Revision>, Error> {
    for (key, expected) in &transaction.compares {
        let found = writer.get(Family::Registry, key.as_bytes())?;
        let found = found.map_or(Revision(0), |bytes| revision_of(&bytes).unwrap_or_default());
        if found != *expected && !planted("registry: a commit does not compare") {
            return Ok(None);
        }
    }
    let revision = writer.counter(LAST_REVISION)? + 1;
    let family = writer.family(Family::Registry);
    let mut batch = WriteBatch::default();
    batch.put(LAST_REVISION, revision.to_be_bytes());
    for (key, value) in transaction.puts {
        batch.put_cf(family, key, [&revision.to_be_bytes(), &value[..]].concat());
    }
    for key in transaction.deletes {
        batch.delete_cf(family, key);
    }
    writer.write_synced(batch)?;
    Ok(Some(Revision(revision)))
}

fn revision_of(bytes: &[u8]) -> Option<Revision> {
    bytes.first_chunk().map(|revision| Revision(u64::from_be_bytes(*revision)))
}

/// A key and its value as RocksDB holds them: the revision, 8 bytes big-endian, then the value.
pub fn decode(key: Vec<u8>, mut bytes: Vec<u8>) -> Result<Entry, VolumeError> {
    let damaged = |what: &str| VolumeError::Damaged(format!("the registry holds {what}"));
    let key = String::from_utf8(key).map_err(|_| damaged("a key that is no text"))?;
    let revision = revision_of(&bytes).ok_or_else(|| damaged(&format!("no revision for {key}")))?;
    bytes.drain(..size_of::<u64>());
    Ok(Entry { key, value: bytes, revision })
}
