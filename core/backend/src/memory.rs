//! Objects in memory, in a fixed order: for tests and simulations.

use crate::{Backend, BackendError, Capacity, ObjectInfo, ObjectName, Urgency};
use bytes::{Bytes, BytesMut};
use futures_util::future::LocalBoxFuture;
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    ops::Bound,
};

/// A backend that is a map. Every operation takes effect at once, when its future is first polled.
#[derive(Debug, Clone, Default)]
pub struct MemoryBackend {
    objects: RefCell<BTreeMap<ObjectName, Bytes>>,
    capacity: Cell<Option<MemoryCapacity>>,
}

#[derive(Debug, Clone, Copy)]
struct MemoryCapacity {
    total_bytes: u64,
    reserve_bytes: u64,
}

impl MemoryBackend {
    /// Empty, and without a limit.
    pub fn new() -> MemoryBackend {
        MemoryBackend::default()
    }

    /// From now on at most `total_bytes`, of which guest data must leave `reserve_bytes`.
    pub fn set_capacity(&self, total_bytes: u64, reserve_bytes: u64) {
        self.capacity.set(Some(MemoryCapacity { total_bytes, reserve_bytes }));
    }

    /// All names in order.
    pub fn names(&self) -> Vec<ObjectName> {
        self.objects.borrow().keys().cloned().collect()
    }

    /// The bytes under a name.
    pub fn bytes(&self, name: &ObjectName) -> Option<Bytes> {
        self.objects.borrow().get(name).cloned()
    }

    /// Puts other bytes under a name, or removes it with `None`: damage, which the trait has no way to do.
    pub fn damage(&self, name: &ObjectName, bytes: Option<Bytes>) {
        match bytes {
            Some(bytes) => self.objects.borrow_mut().insert(name.clone(), bytes),
            None => self.objects.borrow_mut().remove(name),
        };
    }

    /// All bytes stored.
    pub fn used_bytes(&self) -> u64 {
        self.objects.borrow().values().map(|object| object.len() as u64).sum()
    }

    fn admit(&self, name: &ObjectName, length: u64, urgency: Urgency) -> Result<(), BackendError> {
        let Some(capacity) = self.capacity.get() else { return Ok(()) };
        let kept = if urgency == Urgency::Normal { capacity.reserve_bytes } else { 0 };
        let used = self.used_bytes();
        if used.saturating_add(length).saturating_add(kept) <= capacity.total_bytes {
            return Ok(());
        }
        let reason = format!("{used} of {} bytes used, {kept} kept", capacity.total_bytes);
        Err(BackendError::NoSpace { operation: "put", object: name.to_string(), reason })
    }

    fn insert(&self, name: &ObjectName, parts: &[Bytes], urgency: Urgency) -> Result<(), BackendError> {
        let mut bytes = BytesMut::new();
        parts.iter().for_each(|part| bytes.extend_from_slice(part));
        self.admit(name, bytes.len() as u64, urgency)?;
        let mut objects = self.objects.borrow_mut();
        let is_same = match objects.get(name) {
            Some(found) => *found == bytes,
            None if is_folder_or_below_object(&objects, name) => false,
            None => {
                objects.insert(name.clone(), bytes.freeze());
                true
            }
        };
        if is_same { Ok(()) } else { Err(BackendError::Conflict { object: name.to_string() }) }
    }

    fn read(&self, name: &ObjectName, offset: u64, length: u64) -> Result<Bytes, BackendError> {
        let objects = self.objects.borrow();
        let object = objects.get(name).ok_or_else(|| BackendError::NotFound { object: name.to_string() })?;
        let start = offset.min(object.len() as u64);
        let end = start.saturating_add(length).min(object.len() as u64);
        Ok(object.slice(start as usize..end as usize))
    }
}

/// As in a file system, no name is a folder of another.
fn is_folder_or_below_object(objects: &BTreeMap<ObjectName, Bytes>, name: &ObjectName) -> bool {
    let folder = format!("{name}/");
    let has_below = objects
        .range((Bound::Excluded(name), Bound::Unbounded))
        .take_while(|(other, _)| other.as_str().starts_with(name.as_str()))
        .any(|(other, _)| other.as_str().starts_with(&folder));
    let is_below = name
        .as_str()
        .match_indices('/')
        .any(|(at, _)| ObjectName::new(&name.as_str()[..at]).is_ok_and(|above| objects.contains_key(&above)));
    has_below || is_below
}

impl Backend for MemoryBackend {
    fn put(
        &self,
        name: &ObjectName,
        parts: Vec<Bytes>,
        urgency: Urgency,
    ) -> LocalBoxFuture<'_, Result<(), BackendError>> {
        let name = name.clone();
        Box::pin(async move { self.insert(&name, &parts, urgency) })
    }

    fn get_range(
        &self,
        name: &ObjectName,
        offset: u64,
        length: u64,
    ) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        let name = name.clone();
        Box::pin(async move { self.read(&name, offset, length) })
    }

    fn get(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        self.get_range(name, 0, u64::MAX)
    }

    /// All that can be read is safe, and all is told.
    fn get_lasting(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        self.get(name)
    }

    fn list(
        &self,
        prefix: &str,
        after: Option<&ObjectName>,
        limit: usize,
    ) -> LocalBoxFuture<'_, Result<Vec<ObjectInfo>, BackendError>> {
        let (prefix, after) = (prefix.to_owned(), after.cloned());
        Box::pin(async move {
            let objects = self.objects.borrow();
            let from = after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
            Ok(objects
                .range::<ObjectName, _>((from, Bound::Unbounded))
                .filter(|(name, _)| name.as_str().starts_with(&prefix))
                .take(limit)
                .map(|(name, object)| ObjectInfo { name: name.clone(), length_bytes: object.len() as u64 })
                .collect())
        })
    }

    fn delete(&self, name: &ObjectName) -> LocalBoxFuture<'_, Result<(), BackendError>> {
        let name = name.clone();
        Box::pin(async move {
            self.objects.borrow_mut().remove(&name);
            Ok(())
        })
    }

    fn capacity(&self) -> LocalBoxFuture<'_, Result<Option<Capacity>, BackendError>> {
        Box::pin(async move {
            Ok(self.capacity.get().map(|capacity| Capacity {
                total_bytes: capacity.total_bytes,
                free_bytes: capacity
                    .total_bytes
                    .saturating_sub(capacity.reserve_bytes)
                    .saturating_sub(self.used_bytes()),
            }))
        })
    }
}
