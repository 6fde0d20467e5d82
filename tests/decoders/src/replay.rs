//! A whole write buffer, as a start of ovsd finds it: three slots of the bytes, one after the other.

use crate::{Family, disk};
use bytes::Bytes;
use futures_util::future::{FutureExt, LocalBoxFuture};
use ovs_format::{checksum, log::BatchHeader};
use ovs_volume::{
    Engine, EngineConfig, EngineParts, LogDevice, MemoryPages, MemoryRegistry, SystemChance, SystemClock,
};
use std::{cell::RefCell, io, rc::Rc, time::Duration};
use tokio::task::LocalSet;

const SLOT_COUNT: usize = 8;
const SLOT_BYTES: usize = 64 << 10;
const BLOCK_BYTES: usize = 4096;

/// The replay of a write buffer.
pub(crate) const REPLAY: Family = Family {
    name: "replay",
    check: |bytes| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        LocalSet::new().block_on(&runtime, async {
            let device = Rc::new(Slots::holding(bytes));
            // What a replay chose is what the next one finds.
            open(&device).await && open(&device).await
        })
    },
    seeds: || {
        let [mut batch, mut seal] = disk::batches();
        let mut segment = disk::segment();
        (segment.start_lsn, segment.synced_lsn, segment.voids) = (7, 7, Vec::new());
        (batch.synced_lsn, batch.floor_lsn, seal.floor_lsn) = (7, 7, 7);
        let mut slot = segment.encode();
        slot.extend(batch.encode());
        slot.extend([[1; BLOCK_BYTES], [2; BLOCK_BYTES]].concat());
        let open_ended = slot.clone();
        slot.extend(seal.encode());
        slot.resize(SLOT_BYTES, 0);
        (segment.id.generation, segment.start_lsn) = (7, 9);
        (batch.segment.generation, batch.lsn) = (7, 9);
        slot.extend(segment.encode());
        slot.extend(batch.encode());
        vec![Vec::new(), open_ended, slot]
    },
    memory_bytes: 8 << 20,
    memory_per_byte: 16,
};

async fn open(device: &Rc<Slots>) -> bool {
    let parts = EngineParts {
        clock: Rc::new(SystemClock::new()),
        chance: Rc::new(SystemChance),
        registry: Rc::new(MemoryRegistry::default()),
        pages: Rc::new(MemoryPages::default()),
        buffer: device.clone(),
        cache: None,
    };
    match Engine::open(EngineConfig::default(), parts).await {
        Ok(engine) => engine.close(Duration::ZERO).await.is_ok(),
        Err(_) => false,
    }
}

/// Slots in memory.
struct Slots(RefCell<Vec<Vec<u8>>>);

impl Slots {
    /// The bytes over the slots; checksums of headers at the start of a block are put right.
    fn holding(bytes: &[u8]) -> Slots {
        let mut all = bytes[..bytes.len().min(SLOT_COUNT * SLOT_BYTES)].to_vec();
        all.resize(SLOT_COUNT * SLOT_BYTES, 0);
        for at in (0..all.len()).step_by(BLOCK_BYTES) {
            let rest = &all[at..];
            let length = match rest.starts_with(b"OVSSEG01") {
                true => BLOCK_BYTES,
                false => BatchHeader::claimed_bytes(rest).unwrap_or(0).min(rest.len()),
            };
            if length >= BLOCK_BYTES {
                let sum = checksum(&[&rest[..12], &rest[16..length]].concat());
                all[at + 12..at + 16].copy_from_slice(&sum.to_le_bytes());
            }
        }
        Slots(RefCell::new(all.chunks(SLOT_BYTES).map(<[u8]>::to_vec).collect()))
    }
}

impl LogDevice for Slots {
    fn slot_count(&self) -> usize {
        SLOT_COUNT
    }

    fn slot_bytes(&self) -> u64 {
        SLOT_BYTES as u64
    }

    fn write(&self, slot: usize, offset: u64, parts: Vec<Bytes>) -> LocalBoxFuture<'_, io::Result<()>> {
        let bytes = parts.concat();
        let at = offset as usize;
        self.0.borrow_mut()[slot][at..at + bytes.len()].copy_from_slice(&bytes);
        async { Ok(()) }.boxed_local()
    }

    fn sync(&self, _slot: usize) -> LocalBoxFuture<'_, io::Result<()>> {
        async { Ok(()) }.boxed_local()
    }

    fn read(&self, slot: usize, offset: u64, length: usize) -> LocalBoxFuture<'_, io::Result<Bytes>> {
        let slots = self.0.borrow();
        let bytes = slots[slot].get(offset as usize..).and_then(|rest| rest.get(..length));
        let read = bytes.map(Bytes::copy_from_slice).ok_or_else(|| io::ErrorKind::UnexpectedEof.into());
        async { read }.boxed_local()
    }
}
