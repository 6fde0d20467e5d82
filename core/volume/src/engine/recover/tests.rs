//! What tells of a vDisk, where a crash has cut off the put or the delete of it.

use super::*;
use crate::journal::tests::unfinished::{Drives, run};
use ovs_backend::Urgency;
use ovs_format::journal::{Position, Record};
use ovs_units::{Epoch, JournalIndex};

const VDISK: VdiskId = VdiskId(Uuid::from_u128(1));

#[test]
fn a_tombstone_that_was_read_stays() {
    run(async {
        let (drives, name) = (Drives::new(), journal::tombstone_name(VDISK));
        let backend = drives.open();
        backend.put(&name, vec![tombstone::encode(VDISK).into()], Urgency::Reserve).await.unwrap();
        backend.settle().await;
        drives.cut_off(&name);
        assert!(is_deleted(&drives.open(), VDISK).await.unwrap());
        assert_eq!(drives.count(&name), 2);
    });
}

#[test]
fn a_vdisk_of_which_nothing_was_finished_is_none() {
    run(async {
        let drives = Drives::new();
        let backend = drives.open();
        let position = Position { epoch: Epoch(1), index: JournalIndex(0) };
        let record = Record::Properties { properties: vec![7; 100_000].into() };
        journal::put(&backend, VDISK, position, &record).await.unwrap();
        backend.settle().await;
        drives.cut_off(&journal::record_name(VDISK, position));
        let backend = drives.open();
        let vpool = VpoolId(Uuid::nil());
        let told = Reader { backend: &backend, vpool, told: HashMap::new() }.told(VDISK).await.unwrap();
        assert!(matches!((&told.is_deleted, &told.head), (Ok(false), Ok(None))));
        // What was, is more than that.
        let sco = crate::sco::object_name(format!("{}s/1", vdisk_prefix(VDISK)));
        backend.put(&sco, vec![b"x"[..].into()], Urgency::Normal).await.unwrap();
        let told = Reader { backend: &backend, vpool, told: HashMap::new() }.told(VDISK).await.unwrap();
        assert!(told.head.is_err());
    });
}
