//! The registry: a small ordered key-value store with transactions.
//!
//! RocksDB when alone, etcd when many (both in `ovs-cluster`). It holds vPools, names, ownership and each vDisk's head.
//! Nothing lives in it alone: what it holds can be rebuilt from the write buffer and the backend.

use crate::VolumeError;
use futures_util::future::LocalBoxFuture;
use std::{cell::RefCell, collections::BTreeMap};

/// The version of a key: the revision of the transaction that wrote it last; 0 means the key does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Revision(pub u64);

/// A key with its value and version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: Vec<u8>,
    /// The transaction that wrote it.
    pub revision: Revision,
}

/// All of it or nothing: if every compared key is still at its revision, the puts and deletes happen at once.
#[derive(Debug, Clone, Default)]
pub struct Transaction {
    /// Keys and the revision each must be at (`Revision(0)`: must not exist).
    pub compares: Vec<(String, Revision)>,
    /// Keys and their new values.
    pub puts: Vec<(String, Vec<u8>)>,
    /// Keys to remove.
    pub deletes: Vec<String>,
}

impl Transaction {
    /// An empty transaction.
    pub fn new() -> Transaction {
        Transaction::default()
    }

    /// Requires that `key` is still at `revision`.
    #[must_use]
    pub fn compare(mut self, key: impl Into<String>, revision: Revision) -> Self {
        self.compares.push((key.into(), revision));
        self
    }

    /// Sets `key`.
    #[must_use]
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.puts.push((key.into(), value.into()));
        self
    }

    /// Removes `key`.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.deletes.push(key.into());
        self
    }
}

/// An ordered key-value store with synced, compare-guarded transactions.
pub trait Registry {
    /// One key.
    fn get(&self, key: &str) -> LocalBoxFuture<'_, Result<Option<Entry>, VolumeError>>;

    /// All keys that start with `prefix`, in order.
    fn scan(&self, prefix: &str) -> LocalBoxFuture<'_, Result<Vec<Entry>, VolumeError>>;

    /// Commits. `Ok(Some(revision))`: done and on stable storage. `Ok(None)`: a compare did not hold, nothing changed.
    fn commit(&self, transaction: Transaction) -> LocalBoxFuture<'_, Result<Option<Revision>, VolumeError>>;
}

/// A registry in memory, for tests and simulations.
#[derive(Debug, Clone, Default)]
pub struct MemoryRegistry {
    /// The last revision, and the keys with their values and revisions.
    state: RefCell<(u64, Keys)>,
}

type Keys = BTreeMap<String, (Vec<u8>, Revision)>;

impl Registry for MemoryRegistry {
    fn get(&self, key: &str) -> LocalBoxFuture<'_, Result<Option<Entry>, VolumeError>> {
        let key = key.to_owned();
        Box::pin(async move {
            let state = self.state.borrow();
            Ok(state.1.get(&key).map(|(value, revision)| Entry {
                key: key.clone(),
                value: value.clone(),
                revision: *revision,
            }))
        })
    }

    fn scan(&self, prefix: &str) -> LocalBoxFuture<'_, Result<Vec<Entry>, VolumeError>> {
        let prefix = prefix.to_owned();
        Box::pin(async move {
            let state = self.state.borrow();
            let entries = state.1.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix));
            Ok(entries
                .map(|(key, (value, revision))| Entry {
                    key: key.clone(),
                    value: value.clone(),
                    revision: *revision,
                })
                .collect())
        })
    }

    fn commit(&self, transaction: Transaction) -> LocalBoxFuture<'_, Result<Option<Revision>, VolumeError>> {
        Box::pin(async move {
            let (last, keys) = &mut *self.state.borrow_mut();
            let at = |key: &String| keys.get(key).map_or(Revision(0), |(_, revision)| *revision);
            if transaction.compares.iter().any(|(key, revision)| at(key) != *revision) {
                return Ok(None);
            }
            *last += 1;
            let revision = Revision(*last);
            for (key, value) in transaction.puts {
                keys.insert(key, (value, revision));
            }
            for key in transaction.deletes {
                keys.remove(&key);
            }
            Ok(Some(revision))
        })
    }
}
