//! For benchmarks: replaces the map of a vDisk by a larger one over the SCOs that it has.
//!
//! `large_map REGISTRY VDISK CLUSTERS random|sequential`: the folder of the registry of an ovsd that is stopped, the vDisk's
//! UUID, how many clusters from the first on. `random`: every cluster is at a random place of those SCOs. `sequential`: as
//! if it had been written from the beginning to the end, each SCO behind the one before; its table has as many entries as
//! it would have then, and they repeat the SCOs that are there. What a cluster holds is then what some other cluster held.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use ovs_cluster::RocksStore;
use ovs_format::page::{
    CheckpointRecord, ChildEntry, FANOUT, RootEntry, TABLE_CHUNK, decode_table, encode_inner, encode_leaf,
    encode_table,
};
use ovs_format::sco::ScoRef;
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

    /// A table with these entries, and which pages it is.
    async fn add_table(&mut self, entries: &[TableEntry]) -> Result<Vec<u64>> {
        let mut pages = Vec::new();
        for chunk in entries.chunks(TABLE_CHUNK) {
            pages.push(self.add(|number| encode_table(number, chunk)).await?);
        }
        Ok(pages)
    }
}

/// Gives the place of one cluster after the other, as a leaf has it.
type Places = Box<dyn FnMut() -> u64>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [registry, vdisk, clusters, order] = &arguments[..] else {
        anyhow::bail!("usage: large_map REGISTRY VDISK CLUSTERS random|sequential")
    };
    let (vdisk, clusters): (VdiskId, u64) = (vdisk.parse().context("VDISK")?, clusters.parse()?);
    let (_, store) = RocksStore::open(Path::new(registry))?;
    let record = store.record(&vdisk.to_string()).await?.context("the vDisk has no checkpoint")?;
    let mut record = CheckpointRecord::decode(vdisk, &record)?;
    let table = table(&store, &record).await?;
    let mut pages = Pages { next: store.highest().await? + 1, store: &store, waiting: Vec::new() };
    let mut next_place = match order.as_str() {
        "random" => random(table.clone())?,
        "sequential" => {
            let long = repeated(&table, clusters)?;
            record.table_pages = pages.add_table(&long).await?;
            sequential(long)
        }
        other => anyhow::bail!("{other}: random or sequential"),
    };
    let mut level: Vec<ChildEntry> = Vec::new();
    for first in (0..clusters).step_by(FANOUT) {
        let mapped = (clusters - first).min(FANOUT as u64);
        let mut leaf = [0; FANOUT];
        leaf[..mapped as usize].fill_with(&mut next_place);
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
    println!("{} pages; {clusters} clusters, {order}, over {} SCOs", pages.next, scos(&table).count());
    Ok(())
}

fn random(table: Vec<TableEntry>) -> Result<Places> {
    let places: Vec<u64> = places(table).collect();
    ensure!(!places.is_empty(), "the vDisk has no SCOs");
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    Ok(Box::new(move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        places[(random % places.len() as u64) as usize]
    }))
}

/// Those SCOs again and again until they have `clusters`.
fn repeated(table: &[TableEntry], clusters: u64) -> Result<Vec<TableEntry>> {
    ensure!(scos(table).next().is_some(), "the vDisk has no SCOs");
    let mut missing = i64::try_from(clusters)?;
    let endless = scos(table).collect::<Vec<_>>().into_iter().cycle();
    let enough = endless.take_while(|sco| {
        let is_needed = missing > 0;
        missing -= i64::from(sco.cluster_count);
        is_needed
    });
    Ok(enough.map(TableEntry::Put).collect())
}

fn sequential(table: Vec<TableEntry>) -> Places {
    let mut places = places(table);
    Box::new(move || places.next().expect("the table has as many clusters"))
}

fn scos(table: &[TableEntry]) -> impl Iterator<Item = ScoRef> {
    table.iter().filter_map(|entry| if let TableEntry::Put(sco) = entry { Some(*sco) } else { None })
}

/// Every place of every SCO in the table, as a leaf has it.
fn places(table: Vec<TableEntry>) -> impl Iterator<Item = u64> {
    (1u64..).zip(table).flat_map(|(number, entry)| {
        let count = if let TableEntry::Put(sco) = entry { sco.cluster_count } else { 0 };
        (0..u64::from(count)).map(move |offset| number << 16 | offset)
    })
}

async fn table(store: &dyn PageStore, record: &CheckpointRecord) -> Result<Vec<TableEntry>> {
    let mut entries = Vec::new();
    for page in &record.table_pages {
        let bytes = store.load(PageId(*page)).await?.context("a page of the table is missing")?;
        entries.extend(decode_table(*page, &bytes)?);
    }
    Ok(entries)
}
