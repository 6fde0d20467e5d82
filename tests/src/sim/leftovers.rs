//! Once scrub is through, the backend has what the vDisks need, and nothing else: whatever ended before, and at whichever point.

use super::{Failure, World, life::Life};
use ovs_backend::ObjectName;
use ovs_format::journal::{Position, Record};
use ovs_units::{Epoch, JournalIndex, VdiskId};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// What goes in the background is gone after so many seconds.
const SECONDS_MAX: u32 = 100;

impl World {
    pub(super) fn check_leftovers(&self, life: &Life) -> Result<(), Failure> {
        life.run(async {
            let mut failure = None;
            for _ in 0..SECONDS_MAX {
                failure = self.leftovers().await?;
                if failure.is_none() {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            failure.map_or(Ok(()), Err)
        })?
    }

    async fn leftovers(&self) -> Result<Option<Failure>, Failure> {
        let disks = self.model.disks.borrow().clone();
        for disk in &disks {
            let vdisk = disk.open().map_err(|error| error.to_string())?;
            vdisk.scrub().await.map_err(|error| format!("vDisk {}: a scrub: {error}", disk.id))?;
            if let Some(failure) = self.leftovers_of(disk.id, vdisk.stats().stored.0) {
                return Ok(Some(format!("vDisk {}: {failure}", disk.id)));
            }
        }
        let names = self.stores.backend.names();
        for (id, _) in self.model.gone.borrow().iter() {
            if self.model.has_living_descendant(*id) {
                continue;
            }
            if let Some(name) = names.iter().find(|name| name.as_str().starts_with(&folder_of(*id))) {
                return Ok(Some(format!("of vDisk {id}, which is deleted, {name} is left")));
            }
        }
        Ok(None)
    }

    fn leftovers_of(&self, id: VdiskId, stored_bytes: u64) -> Option<Failure> {
        let backend = &self.stores.backend;
        let below = |kind: &str| -> Vec<(ObjectName, String)> {
            let prefix = format!("{}{kind}", folder_of(id));
            let names = backend.names().into_iter();
            names
                .filter_map(|name| Some((name.clone(), name.as_str().strip_prefix(&prefix)?.to_owned())))
                .collect()
        };
        if let Some((name, _)) = below("tombstone").first() {
            return Some(format!("{name} is left"));
        }
        let bytes =
            |(name, _): &(ObjectName, String)| backend.bytes(name).map_or(0, |bytes| bytes.len() as u64);
        let sco_bytes: u64 = below("s/").iter().map(bytes).sum();
        if sco_bytes != stored_bytes {
            return Some(format!("SCOs of {sco_bytes} bytes are there, and {stored_bytes} are of use"));
        }
        let roots: BTreeSet<String> = below("c/")
            .iter()
            .filter(|(_, copy)| copy.split('-').count() == 3)
            .map(|(_, copy)| copy.clone())
            .collect();
        let root_of = |copy: &str| copy.split('-').take(3).collect::<Vec<_>>().join("-");
        if let Some((part, _)) = below("c/").iter().find(|(_, copy)| !roots.contains(&root_of(copy))) {
            return Some(format!("{part} is of no copy of the map"));
        }
        if roots.len() > 2 {
            return Some(format!("there are {} copies of the map", roots.len()));
        }
        self.journal_strays(id, roots.last().and_then(|root| position_of(root)), &below("j/"))
    }

    /// Records behind the newest copy of the map that the journal's end does not lead back to.
    fn journal_strays(
        &self,
        id: VdiskId,
        copied: Option<Position>,
        journal: &[(ObjectName, String)],
    ) -> Option<Failure> {
        let all: BTreeMap<Position, &ObjectName> =
            journal.iter().filter_map(|(name, text)| Some((position_of(text)?, name))).collect();
        let mut end = *all.last_key_value()?.0;
        let mut needed = BTreeMap::new();
        loop {
            needed.insert(end.epoch, end.index);
            let start = Position { epoch: end.epoch, index: JournalIndex(0) };
            let bytes = all.get(&start).and_then(|name| self.stores.backend.bytes(name));
            let Some(Ok(Record::Start { continues: Some(before), .. })) =
                bytes.map(|bytes| Record::decode(&bytes, id, start))
            else {
                break;
            };
            end = before;
        }
        let is_needed = |at: &Position| {
            needed.get(&at.epoch).is_some_and(|last| at.index <= *last)
                || copied.is_some_and(|copied| *at <= copied)
        };
        let stray = all.iter().find(|(at, _)| !is_needed(at));
        stray.map(|(_, name)| format!("nothing leads to {name}"))
    }
}

/// <epoch>-<index>, and whatever follows.
fn position_of(text: &str) -> Option<Position> {
    let mut numbers = text.split('-').map(|number| u64::from_str_radix(number, 16).ok());
    Some(Position { epoch: Epoch(numbers.next()??), index: JournalIndex(numbers.next()??) })
}

fn folder_of(id: VdiskId) -> String {
    format!("v/{}/", id.0.simple())
}
