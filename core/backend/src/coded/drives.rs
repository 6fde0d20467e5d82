//! The drives of a composite, and what each is there for.
//!
//! One that was lost, or has left, keeps its place: where fragments belong follows from the order of all drives that ever were, so
//! that a loss moves nothing but what was lost.

use super::{CodedBackend, PresetError};
use crate::{Backend, BackendError, Capacity, ObjectInfo, ObjectName, Urgency};
use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use std::{fmt, ops::Deref, rc::Rc};
use uuid::Uuid;

/// What a drive is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Duty {
    /// It takes fragments, and is read.
    Serving,
    /// It is read, and takes nothing: what it has goes to others.
    Leaving,
    /// What was on it is gone, or given up, and is made again on others. It is never asked again, whatever comes back in its place.
    Lost,
    /// Nothing of it is missed any more.
    Gone,
}

impl Duty {
    /// Is it asked for what it has?
    pub(super) fn is_asked(self) -> bool {
        matches!(self, Duty::Serving | Duty::Leaving)
    }

    pub(super) fn takes(self) -> bool {
        self == Duty::Serving
    }
}

/// A backend among others.
#[derive(Clone)]
pub struct Drive {
    /// Its name for ever: where fragments go depends on it.
    pub id: Uuid,
    /// What else is lost when this is: a policy bounds fragments per node.
    pub node: String,
    /// Where it is.
    pub site: String,
    /// Its share beside the others'.
    pub weight: u32,
    /// What stores the fragments.
    pub backend: Rc<dyn Backend>,
    /// What it is there for.
    pub duty: Duty,
}

impl Drive {
    /// One that is never asked.
    pub fn departed(id: Uuid, node: String, site: String, weight: u32, duty: Duty) -> Drive {
        Drive { id, node, site, weight, backend: Rc::new(Departed), duty }
    }
}

impl fmt::Debug for Drive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Drive { id, node, site, weight, duty, .. } = self;
        f.debug_struct("Drive")
            .field("id", id)
            .field("node", node)
            .field("site", site)
            .field("weight", weight)
            .field("duty", duty)
            .finish()
    }
}

/// All drives there ever were. None changes its index.
#[derive(Clone, Debug)]
pub(super) struct Drives {
    all: Vec<Drive>,
    /// Another with each change.
    pub(super) generation: u64,
}

impl Deref for Drives {
    type Target = [Drive];

    fn deref(&self) -> &[Drive] {
        &self.all
    }
}

impl Drives {
    pub(super) fn new(all: Vec<Drive>) -> Drives {
        Drives { all, generation: 0 }
    }

    /// Those of such a duty.
    pub(super) fn with(&self, is_it: impl Fn(Duty) -> bool) -> impl Iterator<Item = usize> {
        self.all.iter().enumerate().filter(move |(_, drive)| is_it(drive.duty)).map(|(index, _)| index)
    }

    /// Those that are asked for what they have.
    pub(super) fn asked(&self) -> impl Iterator<Item = usize> {
        self.with(Duty::is_asked)
    }
}

impl CodedBackend {
    /// One more drive: it takes fragments from the next put on.
    pub fn add_drive(&self, drive: Drive) -> Result<(), PresetError> {
        let drives = self.inner.drives();
        if drives.iter().any(|other| other.id == drive.id) {
            return Err(PresetError::Twice(format!("drive {}", drive.id)));
        }
        self.inner.suspects.borrow_mut().push(None);
        self.change(|all| all.push(drive));
        Ok(())
    }

    /// Serving and leaving drives may become each other, and lost; leaving and lost ones gone. False: there is no such drive, or
    /// that cannot be.
    pub fn set_duty(&self, id: Uuid, duty: Duty) -> bool {
        let drives = self.inner.drives();
        let Some(index) = drives.iter().position(|drive| drive.id == id) else { return false };
        let before = drives[index].duty;
        let is_possible = match duty {
            Duty::Serving | Duty::Leaving | Duty::Lost => before.is_asked(),
            Duty::Gone => matches!(before, Duty::Leaving | Duty::Lost),
        };
        if before != duty && is_possible {
            self.change(|all| {
                all[index].duty = duty;
                if !duty.is_asked() {
                    all[index].backend = Rc::new(Departed);
                }
            });
        }
        before == duty || is_possible
    }

    /// All drives, and what each is there for.
    pub fn duties(&self) -> Vec<(Uuid, Duty)> {
        self.inner.drives().iter().map(|drive| (drive.id, drive.duty)).collect()
    }

    /// Drives that are asked and have failed when they last were.
    pub fn silent(&self) -> Vec<Uuid> {
        let (drives, suspects) = (self.inner.drives(), self.inner.suspects.borrow());
        drives.asked().filter(|index| suspects[*index].is_some()).map(|index| drives[index].id).collect()
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Drive>)) {
        let mut drives = Drives::clone(&self.inner.drives());
        change(&mut drives.all);
        drives.generation += 1;
        *self.inner.drives.borrow_mut() = Rc::new(drives);
        self.inner.upkeep.ask_for_survey();
    }
}

/// What is in the place of a drive that is never asked.
struct Departed;

impl Departed {
    fn refused<T>(&self, operation: &'static str) -> LocalBoxFuture<'_, Result<T, BackendError>> {
        let reason = "this drive is lost or has left".to_owned();
        Box::pin(async move { Err(BackendError::Retry { operation, object: String::new(), reason }) })
    }
}

impl Backend for Departed {
    fn put(&self, _: &ObjectName, _: Vec<Bytes>, _: Urgency) -> LocalBoxFuture<'_, Result<(), BackendError>> {
        self.refused("put")
    }

    fn get_range(&self, _: &ObjectName, _: u64, _: u64) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        self.refused("get")
    }

    fn get(&self, _: &ObjectName) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        self.refused("get")
    }

    fn get_lasting(&self, _: &ObjectName) -> LocalBoxFuture<'_, Result<Bytes, BackendError>> {
        self.refused("get")
    }

    fn list(
        &self,
        _: &str,
        _: Option<&ObjectName>,
        _: usize,
    ) -> LocalBoxFuture<'_, Result<Vec<ObjectInfo>, BackendError>> {
        self.refused("list")
    }

    fn delete(&self, _: &ObjectName) -> LocalBoxFuture<'_, Result<(), BackendError>> {
        self.refused("delete")
    }

    fn capacity(&self) -> LocalBoxFuture<'_, Result<Option<Capacity>, BackendError>> {
        self.refused("capacity")
    }
}
