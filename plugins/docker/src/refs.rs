//! Who uses a volume: Docker's mount IDs, counted.
//!
//! `docker cp` on a running container sends Mount and Unmount with the ID of the running mount, so an ID is counted and
//! not merely present. Docker also sends Unmount after a Mount that failed (moby#37834): a failed Mount of an ID that
//! holds references leaves a tombstone, which swallows that Unmount. Erring on the side of too many references is
//! right: one too many keeps a mount until the reconciler sees that no container runs, one too few takes the volume
//! away from under a container.
//!
//! Not here: anything that acts. The driver asks for the total and acts on it.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use thiserror::Error;

/// The longest mount ID taken; Docker's have 64 characters.
pub const MOUNT_ID_BYTES_MAX: usize = 256;
/// The most IDs of one volume.
pub const MOUNT_IDS_MAX: usize = 10_000;

/// Docker's identity of one start of one container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MountId(String);

/// Why an ID was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("a mount ID has at most {MOUNT_ID_BYTES_MAX} bytes")]
pub struct MountIdError;

impl MountId {
    /// Any text that is not too long; Docker before 1.12 sent none.
    pub fn new(text: &str) -> Result<MountId, MountIdError> {
        if text.len() > MOUNT_ID_BYTES_MAX {
            return Err(MountIdError);
        }
        Ok(MountId(text.to_owned()))
    }
}

impl TryFrom<String> for MountId {
    type Error = MountIdError;
    fn try_from(text: String) -> Result<MountId, MountIdError> {
        MountId::new(&text)
    }
}

impl From<MountId> for String {
    fn from(id: MountId) -> String {
        id.0
    }
}

/// Why a reference could not be taken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the volume is mounted under {MOUNT_IDS_MAX} IDs already")]
pub struct TooManyMounts;

/// The references to one volume.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Refs {
    /// How many Mounts of each ID have no Unmount yet; never 0.
    counts: BTreeMap<MountId, u32>,
    /// Failed Mounts of IDs that hold references, whose Unmount may still come.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    tombstones: BTreeMap<MountId, u32>,
}

impl Refs {
    /// A Mount that succeeds.
    pub fn mounted(&mut self, id: &MountId) -> Result<(), TooManyMounts> {
        if !self.counts.contains_key(id) && self.counts.len() >= MOUNT_IDS_MAX {
            return Err(TooManyMounts);
        }
        let count = self.counts.entry(id.clone()).or_insert(0);
        *count = count.saturating_add(1);
        Ok(())
    }

    /// A Mount that failed.
    pub fn mount_failed(&mut self, id: &MountId) {
        // Without a reference there is nothing that the coming Unmount could take by mistake.
        if self.counts.contains_key(id) {
            let count = self.tombstones.entry(id.clone()).or_insert(0);
            *count = count.saturating_add(1);
        }
    }

    /// A Mount that succeeded, but whose caller had gone before the answer: taken back without a tombstone when it was
    /// the ID's only reference, since then an Unmount finds nothing to take.
    pub fn mount_abandoned(&mut self, id: &MountId) {
        self.drop_one(id);
        self.mount_failed(id);
    }

    /// An Unmount. One that nobody is owed changes nothing.
    pub fn unmounted(&mut self, id: &MountId) {
        if let Some(count) = self.tombstones.get_mut(id) {
            *count -= 1;
            if *count == 0 {
                self.tombstones.remove(id);
            }
            return;
        }
        self.drop_one(id);
    }

    fn drop_one(&mut self, id: &MountId) {
        if let Some(count) = self.counts.get_mut(id) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.counts.remove(id);
                self.tombstones.remove(id);
            }
        }
    }

    /// Every reference and tombstone goes: nobody is there any more.
    pub fn clear(&mut self) {
        self.counts.clear();
        self.tombstones.clear();
    }

    /// References in total.
    pub fn total(&self) -> u64 {
        self.counts.values().map(|count| u64::from(*count)).sum()
    }

    /// True when nobody uses the volume.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// True when this ID holds a reference or a tombstone.
    pub fn knows(&self, id: &MountId) -> bool {
        self.counts.contains_key(id) || self.tombstones.contains_key(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `+a` Mount, `-a` Unmount, `!a` failed Mount, `?a` Mount whose caller went, `.` every reference goes.
    #[track_caller]
    fn check(events: &str, expected_total: u64) {
        let mut refs = Refs::default();
        for event in events.split_ascii_whitespace() {
            let id = MountId::new(&event[1..]).unwrap();
            match &event[..1] {
                "+" => refs.mounted(&id).unwrap(),
                "-" => refs.unmounted(&id),
                "!" => refs.mount_failed(&id),
                "?" => {
                    refs.mounted(&id).unwrap();
                    refs.mount_abandoned(&id);
                }
                "." => refs.clear(),
                other => panic!("{other}"),
            }
            let bytes = serde_json::to_vec(&refs).unwrap();
            assert_eq!(serde_json::from_slice::<Refs>(&bytes).unwrap(), refs, "survives a restart");
            assert_eq!(refs.is_empty(), refs.total() == 0);
        }
        assert_eq!(refs.total(), expected_total, "{events:?}");
    }

    #[test]
    fn start_and_stop() {
        check("+a", 1);
        check("+a -a", 0);
        check("+a +b -a", 1);
        check("+a -a +b", 1);
    }

    #[test]
    fn docker_cp_uses_the_running_mounts_own_id() {
        check("+a +a -a", 1);
        check("+a +a -a +a -a", 1);
        check("+a +a -a -a", 0);
    }

    #[test]
    fn an_unmount_too_many_takes_nothing() {
        check("-a", 0);
        check("+a -a -a", 0);
        check("+a -b -b", 1);
        check("+a -a -a +a", 1);
    }

    #[test]
    fn the_unmount_after_a_failed_mount_takes_nothing() {
        check("!a -a", 0);
        check("+a !a -a", 1);
        check("+a !a -a -a", 0);
        check("+a !a !a -a -a", 1);
        check("+b !a -a", 1);
        check("!a +a -a", 0);
    }

    #[test]
    fn a_mount_whose_caller_went_is_taken_back() {
        check("?a", 0);
        check("?a -a", 0);
        check("?a +a", 1);
        check("+a ?a", 1);
        check("+a ?a -a", 1);
    }

    #[test]
    fn nobody_left() {
        check("+a +a +b !a .", 0);
        check("+a !a . +a -a", 0);
    }

    #[test]
    fn ids_are_bounded() {
        assert!(MountId::new(&"x".repeat(MOUNT_ID_BYTES_MAX + 1)).is_err());
        assert!(serde_json::from_str::<MountId>(&format!("{:?}", "x".repeat(300))).is_err());
        let mut refs = Refs::default();
        for number in 0..MOUNT_IDS_MAX {
            refs.mounted(&MountId::new(&number.to_string()).unwrap()).unwrap();
        }
        assert_eq!(refs.mounted(&MountId::new("one more").unwrap()), Err(TooManyMounts));
        refs.mounted(&MountId::new("0").unwrap()).unwrap();
    }
}
