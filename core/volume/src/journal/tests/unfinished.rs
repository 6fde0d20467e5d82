//! What a put leaves that a crash cut off, on a backend that is made of drives.

use super::*;
use crate::SystemChance;
use crate::head::Head;
use crate::vdisk::catch_up;
use ovs_backend::Fault;
use ovs_backend::coded::{CodedBackend, Drive, Duty, Policy, Preset, Work};

/// Six drives; what is put is read from two fragments, and acknowledged with three. Short objects: from one, with two.
pub(crate) struct Drives {
    stores: Vec<Rc<MemoryBackend>>,
}

impl Drives {
    pub(crate) fn new() -> Drives {
        Drives { stores: (0..6).map(|_| Rc::default()).collect() }
    }

    /// As a process finds it that knows nothing.
    pub(crate) fn open(&self) -> CodedBackend {
        self.open_without(None)
    }

    /// The same while this drive does not answer.
    pub(crate) fn open_without(&self, silent: Option<usize>) -> CodedBackend {
        let store = |number: usize, store: &Rc<MemoryBackend>| {
            FaultyBackend::new(Rc::clone(store), move |_| {
                (Some(number) == silent).then_some(Fault::ErrorBefore)
            })
        };
        let drive = |(number, inner): (usize, &Rc<MemoryBackend>)| Drive {
            id: Uuid::from_u128(number as u128),
            node: String::new(),
            site: String::new(),
            weight: 1,
            duty: Duty::Serving,
            backend: Rc::new(store(number, inner)),
        };
        let preset = Preset::new(vec![Policy::new(2, 1, 3, 9).unwrap()]).unwrap();
        CodedBackend::new(self.stores.iter().enumerate().map(drive).collect(), preset, Work::Here).unwrap()
    }

    fn fragments(&self, object: &ObjectName) -> Vec<(&MemoryBackend, ObjectName)> {
        let prefix = format!("{}--", object.as_str().replace('-', "-."));
        let of = |store: &Rc<MemoryBackend>| store.names();
        let all =
            self.stores.iter().flat_map(|store| of(store).into_iter().map(move |name| (&**store, name)));
        all.filter(|(_, name)| name.as_str().starts_with(&prefix)).collect()
    }

    pub(crate) fn count(&self, object: &ObjectName) -> usize {
        self.fragments(object).len()
    }

    /// The first drive that has any of it.
    pub(crate) fn holder(&self, object: &ObjectName) -> Option<usize> {
        let fragments = self.fragments(object);
        let has_it =
            |store: &Rc<MemoryBackend>| fragments.iter().any(|(other, _)| std::ptr::eq(*other, &**store));
        self.stores.iter().position(has_it)
    }

    /// One fragment is left.
    pub(crate) fn cut_off(&self, object: &ObjectName) {
        self.fragments(object).into_iter().skip(1).for_each(|(store, name)| store.damage(&name, None));
    }
}

pub(crate) fn run(case: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    tokio::task::LocalSet::new().block_on(&runtime.unwrap(), case);
}

/// Of more than one fragment.
fn long() -> Record {
    Record::Properties { properties: vec![7; 100_000].into() }
}

async fn put_all(drives: &Drives, records: &[(Position, Record)]) {
    let backend = drives.open();
    for (position, record) in records {
        put(&backend, VDISK, *position, record).await.unwrap();
    }
    backend.settle().await;
}

#[test]
fn the_record_at_the_end_is_there_to_stay_once_it_was_found() {
    run(async {
        let drives = Drives::new();
        put_all(&drives, &[(at(1, 0), start(None)), (at(1, 1), resize())]).await;
        let last = record_name(VDISK, at(1, 1));
        let mut head = Head::new(ovs_units::VpoolId(Uuid::nil()), ByteCount(0), None, String::new());
        (head.epoch, head.position) = (Epoch(1), Some((Epoch(1), JournalIndex(0))));
        drives.cut_off(&last);
        assert!(catch_up(&drives.open(), VDISK, &mut head, &SystemChance).await.unwrap());
        assert_eq!((head.position(), drives.count(&last)), (Some(at(1, 1)), 2));
        drives.cut_off(&last);
        let end = newest(&drives.open(), VDISK, None, Reading::ToRestOn).await.unwrap();
        assert_eq!(end, Some(End { position: at(1, 1), epoch: Epoch(1) }));
        assert_eq!(drives.count(&last), 2);
    });
}

#[test]
fn an_unfinished_record_at_the_end_is_none_and_its_name_is_left_alone() {
    run(async {
        let drives = Drives::new();
        put_all(&drives, &[(at(1, 0), start(None)), (at(1, 1), resize()), (at(1, 2), long())]).await;
        drives.cut_off(&record_name(VDISK, at(1, 2)));
        let end = newest(&drives.open(), VDISK, None, Reading::ToRestOn).await.unwrap();
        assert_eq!(end, Some(End { position: at(1, 1), epoch: Epoch(1) }));
        let catch_up_from = async |epoch: u64| {
            let mut head = Head::new(ovs_units::VpoolId(Uuid::nil()), ByteCount(0), None, String::new());
            (head.epoch, head.position) = (Epoch(epoch), Some((Epoch(1), JournalIndex(1))));
            let caught_up = catch_up(&drives.open(), VDISK, &mut head, &SystemChance).await;
            caught_up.map(|is_changed| (is_changed, head.position(), head.epoch))
        };
        assert_eq!(catch_up_from(1).await.unwrap(), (true, Some(at(1, 1)), Epoch(2)));
        // Nor is that of an epoch that never began.
        put_all(&drives, &[(at(2, 0), long())]).await;
        drives.cut_off(&record_name(VDISK, at(2, 0)));
        let end = newest(&drives.open(), VDISK, None, Reading::ToRestOn).await.unwrap();
        assert_eq!(end, Some(End { position: at(1, 1), epoch: Epoch(2) }));
        assert_eq!(catch_up_from(2).await.unwrap(), (true, Some(at(1, 1)), Epoch(3)));
        // An epoch is in the registry before anything of it is here: one that does not know it is older.
        let older = catch_up_from(1).await;
        assert!(matches!(older, Err(VolumeError::Refused(_))), "{older:?}");
    });
}

/// Else it would be the end when the drive answers again, after everybody was shown another.
#[test]
fn a_name_that_only_a_silent_drive_may_have_is_left_alone() {
    run(async {
        let drives = Drives::new();
        put_all(&drives, &[(at(1, 0), start(None)), (at(1, 1), resize()), (at(1, 2), resize())]).await;
        let hidden = record_name(VDISK, at(1, 2));
        drives.cut_off(&hidden);
        let silent = drives.holder(&hidden);
        let mut head = Head::new(ovs_units::VpoolId(Uuid::nil()), ByteCount(0), None, String::new());
        (head.epoch, head.position) = (Epoch(1), Some((Epoch(1), JournalIndex(1))));
        assert!(catch_up(&drives.open_without(silent), VDISK, &mut head, &SystemChance).await.unwrap());
        assert_eq!((head.position(), head.epoch), (Some(at(1, 1)), Epoch(2)));
        assert!(
            !catch_up(&drives.open(), VDISK, &mut head, &SystemChance).await.unwrap(),
            "it did not happen"
        );
        assert_eq!((head.position(), head.epoch), (Some(at(1, 1)), Epoch(2)));
    });
}

/// Whoever had begun it may finish it: until an epoch of ours goes on from before it, that is looked at.
#[test]
fn what_is_finished_behind_a_leap_is_another_hosts() {
    run(async {
        let drives = Drives::new();
        put_all(&drives, &[(at(1, 0), start(None)), (at(1, 1), resize()), (at(1, 2), long())]).await;
        drives.cut_off(&record_name(VDISK, at(1, 2)));
        let mut head = Head::new(ovs_units::VpoolId(Uuid::nil()), ByteCount(0), None, String::new());
        (head.epoch, head.position) = (Epoch(1), Some((Epoch(1), JournalIndex(1))));
        for (epochs_unknown, is_older) in [(false, false), (true, true)] {
            head.epochs_unknown = epochs_unknown;
            let mut head = head.clone();
            assert!(catch_up(&drives.open(), VDISK, &mut head, &SystemChance).await.unwrap());
            let check = async || {
                let own = head.own_beyond();
                check_not_older(&drives.open(), VDISK, head.epoch, head.position(), own).await
            };
            check().await.unwrap();
            put_all(&drives, &[(at(1, 2), long())]).await;
            assert_eq!(check().await.is_err(), is_older);
            // The next opening goes on from it, or knows that it was given up.
            assert_eq!(catch_up(&drives.open(), VDISK, &mut head, &SystemChance).await.unwrap(), is_older);
            assert_eq!(head.position(), Some(at(1, if is_older { 2 } else { 1 })));
            drives.cut_off(&record_name(VDISK, at(1, 2)));
        }
    });
}

#[test]
fn an_unfinished_record_in_the_middle_is_damage() {
    run(async {
        let drives = Drives::new();
        put_all(&drives, &[(at(1, 0), start(None)), (at(1, 1), long()), (at(1, 2), long())]).await;
        drives.cut_off(&record_name(VDISK, at(1, 1)));
        let backend = drives.open();
        let end = newest(&backend, VDISK, None, Reading::ToRestOn).await.unwrap().unwrap();
        assert_eq!(end.position, at(1, 2));
        let chain = read_chain(&backend, VDISK, None, end.position).await;
        assert!(matches!(chain, Err(VolumeError::Damaged(_))), "{chain:?}");
        // Whoever put it knew that what comes before it is committed: so does not a registry that stops there, …
        drives.cut_off(&record_name(VDISK, at(1, 2)));
        let older = check_not_older(&backend, VDISK, Epoch(1), Some(at(1, 0)), Own::Record).await;
        assert!(matches!(older, Err(VolumeError::Refused(_))), "{older:?}");
        // … and a recovery without any does not take what comes before for the end.
        let end = newest(&drives.open(), VDISK, None, Reading::ToRestOn).await;
        assert!(matches!(end, Err(VolumeError::Damaged(_))), "{end:?}");
        // A copy of the map that has it says that it was there.
        let end = newest(&drives.open(), VDISK, Some(at(1, 1)), Reading::ToRestOn).await.unwrap();
        assert_eq!(end, Some(End { position: at(1, 1), epoch: Epoch(1) }));
    });
}
