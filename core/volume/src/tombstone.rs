//! What says on a backend that a vDisk is deleted, and which of its epochs that is about.
//!
//! A deletion raises the epoch in the registry, as whoever begins one does, and names its tombstone after it; no record of a vDisk
//! that is not deleted is ever of that epoch. So whoever goes on with the vDisk, because the deletion failed, or because
//! a recovery did not find the tombstone, does so in a higher one, and the tombstone says nothing any more, however late it lands.
//! A vDisk that is deleted and kept for its clones gets a tombstone for each epoch that it begins, before its start.
//!
//! For whoever has nothing but the backend:
//!
//! | tombstone of | newest record of | the vDisk is |
//! |---|---|---|
//! | the same epoch, or a higher one | | deleted |
//! | a lower one | | there: somebody has gone on with it |
//! | any | nothing is there | deleted: its removal was cut short, or this landed late |
//! | none that was finished | | there: no such deletion was acknowledged |
//!
//! For a registry that has a head that is not deleted:
//!
//! | tombstone of | head | the vDisk is |
//! |---|---|---|
//! | its epoch | a deletion took that | deleted: that was cut short |
//! | its epoch, or a higher one | taken in from the backend, and no epoch begun since | there: when it was taken in that was not acknowledged |
//! | its epoch | has records of it | there: the number was given twice, by a registry that was put back |
//! | its epoch | else | the same |
//! | a higher one | else | deleted, and nothing of it goes: the registry is from before that deletion, and may not know of clones |

use crate::VolumeError;
use crate::journal::Reading;
use crate::sco::{object_name, vdisk_prefix};
use ovs_backend::{Backend, BackendError, ObjectName, Urgency};
use ovs_format::tombstone;
use ovs_units::{COUNTER_MAX, Epoch, VdiskId, planted};
use std::collections::BTreeSet;

fn prefix(vdisk: VdiskId) -> String {
    format!("{}tombstone", vdisk_prefix(vdisk))
}

pub(crate) fn name(vdisk: VdiskId, epoch: Epoch) -> ObjectName {
    object_name(format!("{}-{:016x}", prefix(vdisk), epoch.0))
}

/// Which tombstone an object of this name is; none for a name that [`name`] does not give.
pub(crate) fn epoch_of(name: &ObjectName, vdisk: VdiskId) -> Option<Epoch> {
    let text = name.as_str().strip_prefix(&prefix(vdisk))?.strip_prefix('-')?;
    let epoch = u64::from_str_radix(text, 16).ok().filter(|epoch| *epoch < COUNTER_MAX)?;
    // As we write it: "+7" is a number, but no name of ours.
    (format!("{epoch:016x}") == text).then_some(Epoch(epoch))
}

/// May use the reserve: what follows makes room.
pub(crate) async fn put(backend: &dyn Backend, vdisk: VdiskId, epoch: Epoch) -> Result<(), VolumeError> {
    let bytes = tombstone::encode(vdisk, epoch);
    Ok(backend.put(&name(vdisk, epoch), vec![bytes.into()], Urgency::Reserve).await?)
}

/// Those that show, finished or not. Anything else at their place is damage.
pub(crate) async fn list(backend: &dyn Backend, vdisk: VdiskId) -> Result<BTreeSet<Epoch>, VolumeError> {
    let (prefix, mut after, mut epochs) = (prefix(vdisk), None, BTreeSet::new());
    loop {
        let page = backend.list(&prefix, after.as_ref(), 1000).await?;
        let Some(last) = page.last() else { return Ok(epochs) };
        after = Some(last.name.clone());
        for object in page {
            let no_tombstone = || {
                let name = &object.name;
                VolumeError::Damaged(format!("object {name} is no tombstone of this version of ovsd"))
            };
            epochs.insert(epoch_of(&object.name, vdisk).ok_or_else(no_tombstone)?);
        }
    }
}

/// The highest epoch from `at_least` on of which there is a tombstone: it deletes a vDisk whose newest record is of that epoch. Also
/// looks for the one of `probed`, since listings may lag.
pub(crate) async fn newest(
    backend: &dyn Backend,
    vdisk: VdiskId,
    at_least: Epoch,
    probed: Epoch,
    reading: Reading,
) -> Result<Option<Epoch>, VolumeError> {
    let listed = list(backend, vdisk).await?;
    let at_least = if planted("tombstone: an older one counts") { Epoch(0) } else { at_least };
    let all: BTreeSet<Epoch> = listed.iter().copied().chain([probed]).collect();
    for epoch in all.range(at_least..).rev() {
        let name = name(vdisk, *epoch);
        match reading.get(backend, &name).await {
            Ok(bytes) => {
                let damaged = |reason: String| VolumeError::Damaged(format!("object {name}: {reason}"));
                let found = tombstone::decode(&bytes, vdisk).map_err(|error| damaged(error.to_string()))?;
                if found != *epoch {
                    return Err(damaged(format!("it is of epoch {found}")));
                }
                return Ok(Some(found));
            }
            // It is being removed, or who listed it is silent now.
            Err(BackendError::NotFound { .. }) if reading == Reading::ToRestOn && listed.contains(epoch) => {
                return Err(VolumeError::Retry(format!("object {name} is listed and not there")));
            }
            // One that was never acknowledged. Should it land yet, somebody has gone on in a higher epoch, or nothing is lost.
            Err(BackendError::NotFound { .. } | BackendError::Incomplete { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::tests::unfinished::run;
    use ovs_backend::{FaultyBackend, MemoryBackend, Operation};
    use std::rc::Rc;
    use uuid::Uuid;

    const VDISK: VdiskId = VdiskId(Uuid::from_u128(1));

    async fn look(backend: &dyn Backend, at_least: u64) -> Result<Option<u64>, VolumeError> {
        let found = newest(backend, VDISK, Epoch(at_least), Epoch(at_least + 1), Reading::ToRestOn).await;
        found.map(|epoch| epoch.map(|epoch| epoch.0))
    }

    #[test]
    fn the_highest_counts_and_none_below() {
        run(async {
            let backend = MemoryBackend::new();
            assert_eq!(look(&backend, 0).await.unwrap(), None);
            for epoch in [3, 17, 9] {
                put(&backend, VDISK, Epoch(epoch)).await.unwrap();
            }
            for (at_least, expected) in [(0, Some(17)), (17, Some(17)), (18, None)] {
                assert_eq!(look(&backend, at_least).await.unwrap(), expected, "{at_least}");
            }
            // What is below is not even looked at.
            let damaged =
                |epoch, with: &'static [u8]| backend.damage(&name(VDISK, Epoch(epoch)), Some(with.into()));
            damaged(9, b"deleted");
            assert_eq!(look(&backend, 17).await.unwrap(), Some(17));
            damaged(17, b"deleted");
            assert!(matches!(look(&backend, 17).await, Err(VolumeError::Damaged(_))));
            let of_another = Box::leak(tombstone::encode(VDISK, Epoch(3)).into_boxed_slice());
            damaged(17, of_another);
            assert!(matches!(look(&backend, 17).await, Err(VolumeError::Damaged(_))));
        });
    }

    #[test]
    fn one_that_is_not_listed_yet_is_found() {
        run(async {
            let inner = Rc::new(MemoryBackend::new());
            let of_now = name(VDISK, Epoch(6));
            let (store, named) = (Rc::clone(&inner), of_now.clone());
            let backend = FaultyBackend::new(Rc::clone(&inner), move |call| {
                let bytes = tombstone::encode(VDISK, Epoch(6)).into();
                store.damage(&named, (call.operation != Operation::List).then_some(bytes));
                None
            });
            assert_eq!(look(&backend, 5).await.unwrap(), Some(6));
        });
    }

    #[test]
    fn only_our_own_names_are_tombstones() {
        let parsed = |text: &str| {
            let name = ObjectName::new(format!("{}{text}", prefix(VDISK))).unwrap();
            epoch_of(&name, VDISK).map(|epoch| epoch.0)
        };
        assert_eq!(parsed("-0000000000000007"), Some(7));
        for other in ["", "-7", "-00000000000000007", "-ffffffffffffffff", "s-0000000000000007"] {
            assert_eq!(parsed(other), None, "{other}");
        }
        // Such as earlier builds have left.
        run(async {
            let backend = MemoryBackend::new();
            let name = ObjectName::new(prefix(VDISK)).unwrap();
            backend.put(&name, vec![b"x"[..].into()], Urgency::Normal).await.unwrap();
            assert!(matches!(look(&backend, 5).await, Err(VolumeError::Damaged(_))));
        });
    }
}
