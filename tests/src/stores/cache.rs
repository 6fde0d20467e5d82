//! The SSD of the read cache. What it holds is of no use to the next engine, which finds it all the same.

use super::{Call, Directable, Directed, Fault, Store, digest, digest_all, spoil};
use crate::Random;
use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use ovs_units::{CacheDedup, CacheMode, VdiskCache, VpoolCache};
use ovs_volume::{CacheDevice, CacheParts};
use std::{cell::RefCell, io, rc::Rc};

const BLOCK_BYTES: u64 = 4096;

/// A cache as a seed chooses it, and what its SSD holds.
#[derive(Clone)]
pub struct MemoryCache {
    memory_blocks: u64,
    vpool: VpoolCache,
    /// None: it has no SSD.
    slots: RefCell<Vec<Bytes>>,
}

impl MemoryCache {
    /// Mostly far too small, so that there is not room for much.
    pub fn by_chance(random: &Random) -> Option<Rc<MemoryCache>> {
        let memory_blocks = 2 << random.below(4);
        let slots = if random.one_in(10) { 0 } else { (memory_blocks as usize) << (1 + random.below(6)) };
        let vpool = VpoolCache {
            mode: a_mode(random),
            quota_bytes: a_quota(random),
            dedup: if random.one_in(2) { CacheDedup::Content } else { CacheDedup::Location },
        };
        let cache = MemoryCache { memory_blocks, vpool, slots: RefCell::new(vec![Bytes::new(); slots]) };
        (!random.one_in(16)).then(|| Rc::new(cache))
    }

    /// What an engine takes, its SSD behind `wrapped`.
    pub fn parts<D: CacheDevice + 'static>(&self, wrapped: impl FnOnce() -> D) -> CacheParts {
        let has_ssd = !self.slots.borrow().is_empty();
        let device = has_ssd.then(|| Rc::new(wrapped()) as Rc<dyn CacheDevice>);
        CacheParts { memory_bytes: self.memory_blocks * BLOCK_BYTES, device }
    }

    /// What holds for the vDisks of the vPool.
    pub fn vpool(&self) -> VpoolCache {
        self.vpool
    }

    pub(crate) fn read_with(&self, slots: &[u32], fault: Option<Fault>) -> Vec<Bytes> {
        let held = self.slots.borrow();
        let mut found: Vec<Bytes> = slots.iter().map(|slot| held[*slot as usize].clone()).collect();
        if let (Some(fault), false) = (fault, found.is_empty()) {
            let (Fault::Swapped(which) | Fault::BitFlip(which) | Fault::ShortRead(which)) = fault else {
                return found;
            };
            let at = which % found.len();
            found[at] = match fault {
                Fault::Swapped(_) => held[which % held.len()].clone(),
                _ => spoil(&found[at], Some(fault)).into(),
            };
        }
        found
    }
}

/// What of a vDisk goes in.
fn a_mode(random: &Random) -> CacheMode {
    match random.below(8) {
        0 => CacheMode::None,
        1..=4 => CacheMode::Read,
        _ => CacheMode::ReadWrite,
    }
}

fn a_quota(random: &Random) -> Option<u64> {
    random.one_in(2).then(|| BLOCK_BYTES << random.below(9))
}

/// What a vDisk may say of its part.
pub(crate) fn a_vdisk_cache(random: &Random) -> VdiskCache {
    let mode = random.one_in(2).then(|| a_mode(random));
    VdiskCache { mode, quota_bytes: a_quota(random) }
}

impl CacheDevice for MemoryCache {
    fn slot_count(&self) -> u32 {
        self.slots.borrow().len() as u32
    }

    fn read(&self, slots: Vec<u32>) -> LocalBoxFuture<'_, io::Result<Vec<Bytes>>> {
        Box::pin(async move { Ok(self.read_with(&slots, None)) })
    }

    fn write(&self, blocks: Vec<(u32, Bytes)>) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            let mut held = self.slots.borrow_mut();
            blocks.into_iter().for_each(|(slot, bytes)| held[slot as usize] = bytes);
            Ok(())
        })
    }
}

impl Directable for MemoryCache {
    const STORE: Store = Store::Cache;
    type Error = io::Error;
    fn injected(_: &Call, _: bool) -> io::Error {
        io::Error::other("injected")
    }
}

impl CacheDevice for Directed<MemoryCache> {
    fn slot_count(&self) -> u32 {
        self.inner.slot_count()
    }

    fn read(&self, slots: Vec<u32>) -> LocalBoxFuture<'_, io::Result<Vec<Bytes>>> {
        Box::pin(async move {
            let read = async |fault| Ok::<_, io::Error>(self.inner.read_with(&slots, fault));
            let work = async |fault| self.read(fault, read).await;
            let told = |found: &Vec<Bytes>| digest_all(found.iter().map(|block| &block[..]));
            self.direct("read", format!("{slots:?}"), 0, work, told).await
        })
    }

    /// No moment for a crash: nobody finds any of it again.
    fn write(&self, blocks: Vec<(u32, Bytes)>) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            let given =
                blocks.iter().map(|(slot, block)| u64::from(*slot) ^ digest(block)).fold(0, |a, b| a ^ b);
            let work = async |_| self.inner.write(blocks).await;
            self.direct("write", "", given, work, |()| 0).await
        })
    }
}
