//! For benchmarks: replaces the map of a vDisk by one in which every cluster is at a random place of the SCOs that it has.
//!
//! `random_map REGISTRY VDISK CLUSTERS`: the folder of the registry of an ovsd that is stopped, the vDisk's UUID, how
//! many clusters from the first on. What a cluster holds is then what some other cluster held.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use ovs_cluster::RocksStore;
use ovs_format::page::{
    CheckpointRecord, ChildEntry, FANOUT, RootEntry, decode_table, encode_inner, encode_leaf,
};
use ovs_format::table::TableEntry;
use ovs_units::VdiskId;
use ovs_volume::{PageId, PageStore};
use std::path::Path;

const LEVELS: u32 = 4;
const PAGES_AT_ONCE: usize = 4096;

struct Pages<'a> {
    store: &'a dyn PageStore,
    next: u64,
    waiting: Vec<(PageId, Bytes)>,
}

impl Pages<'_> {
    async fn add(&mut self, encode: impl FnOnce(u64) -> Vec<u8>) -> Result<u64> {
        let number = self.next;
        self.next += 1;
        self.waiting.push((PageId(number), encode(number).into()));
        if self.waiting.len() == PAGES_AT_ONCE {
            self.store.store(std::mem::take(&mut self.waiting)).await?;
        }
        Ok(number)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [registry, vdisk, clusters] = &arguments[..] else {
        anyhow::bail!("usage: random_map REGISTRY VDISK CLUSTERS")
    };
    let (vdisk, clusters): (VdiskId, u64) = (vdisk.parse().context("VDISK")?, clusters.parse()?);
    let (_, store) = RocksStore::open(Path::new(registry))?;
    let record = store.record(&vdisk.to_string()).await?.context("the vDisk has no checkpoint")?;
    let mut record = CheckpointRecord::decode(vdisk, &record)?;
    let places = places(&store, &record).await?;
    ensure!(!places.is_empty(), "the vDisk has no SCOs");
    let mut pages = Pages { next: store.highest().await? + 1, store: &store, waiting: Vec::new() };
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut level: Vec<ChildEntry> = Vec::new();
    for first in (0..clusters).step_by(FANOUT) {
        let mapped = (clusters - first).min(FANOUT as u64);
        let mut leaf = [0; FANOUT];
        for place in &mut leaf[..mapped as usize] {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            *place = places[(random % places.len() as u64) as usize];
        }
        level.push(ChildEntry { page: pages.add(|number| encode_leaf(number, &leaf)).await?, mapped });
    }
    for _ in 1..LEVELS {
        let mut above = Vec::new();
        for below in level.chunks(FANOUT) {
            let mut children = [ChildEntry::default(); FANOUT];
            children[..below.len()].copy_from_slice(below);
            let mapped = below.iter().map(|child| child.mapped).sum();
            above.push(ChildEntry {
                page: pages.add(|number| encode_inner(number, &children)).await?,
                mapped,
            });
        }
        level = above;
    }
    ensure!(level.len() == 1, "{clusters} clusters are more than a vDisk has");
    record.root = RootEntry { page: level[0].page, mapped: level[0].mapped };
    let waiting = std::mem::take(&mut pages.waiting);
    store.commit(&vdisk.to_string(), waiting, record.encode(vdisk).into()).await?;
    println!("{} pages; {clusters} clusters at {} places", pages.next, places.len());
    Ok(())
}

/// Every place of every SCO in the table, as a leaf has it.
async fn places(store: &dyn PageStore, record: &CheckpointRecord) -> Result<Vec<u64>> {
    let mut places = Vec::new();
    let mut entry = 0u64;
    for page in &record.table_pages {
        let bytes = store.load(PageId(*page)).await?.context("a page of the table is missing")?;
        for sco in decode_table(*page, &bytes)? {
            entry += 1;
            if let TableEntry::Put(sco) = sco {
                places.extend((0..u64::from(sco.cluster_count)).map(|offset| entry << 16 | offset));
            }
        }
    }
    Ok(places)
}
