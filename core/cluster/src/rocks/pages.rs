//! [`PageStore`] over RocksDB.
//!
//! The numbers of all pages are kept in memory too, so that a sweep can ask its caller about each without reading
//! anything. The set never misses a page that is stored; it may name some whose write failed.

use super::database::{Database, Family, OpenFailure, Writer, lock, run};
use super::loads::Loads;
use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use ovs_volume::{PageId, PageStore, VolumeError};
use rocksdb::{Error, ErrorKind, IteratorMode, WriteBatch};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

const HIGHEST_PAGE: &str = "highest_page";
/// Bytes of one batch of pages at most (or one page): a batch is copied into the log and the table in memory whole.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// Pages removed by one batch.
const SWEEP_PAGES_MAX: usize = 4096;

/// The host's map pages and checkpoint records. Cheap to clone.
#[derive(Debug, Clone)]
pub struct RocksPages {
    database: Arc<Database>,
    numbers: Arc<Mutex<Numbers>>,
    loads: Arc<Loads>,
}

#[derive(Debug, Default)]
struct Numbers {
    stored: BTreeSet<u64>,
    highest: u64,
}

impl RocksPages {
    pub(super) fn new(database: Arc<Database>) -> Result<RocksPages, OpenFailure> {
        let read = database.read(|view| {
            let numbers = view.db().iterator_cf(view.family(Family::PageNumbers), IteratorMode::Start);
            let stored = numbers
                .filter_map(|entry| entry.map(|(key, _)| number_of(&key)).transpose())
                .collect::<Result<BTreeSet<_>, Error>>()?;
            // A page stored without its record (a crash in between) counts too.
            let highest = view.counter(HIGHEST_PAGE)?.max(stored.last().copied().unwrap_or(0));
            Ok(Numbers { stored, highest })
        });
        let numbers = read.map_err(|error| database.open_failure(error))?;
        Ok(RocksPages { database, numbers: Arc::new(Mutex::new(numbers)), loads: Arc::default() })
    }
}

impl PageStore for RocksPages {
    fn load(&self, page: PageId) -> LocalBoxFuture<'_, Result<Option<Bytes>, VolumeError>> {
        Box::pin(self.loads.load(&self.database, page, |database, page| {
            let found =
                database.read(|view| none_if_damaged(view.get_once(Family::Pages, &page.0.to_be_bytes())))?;
            Ok(found.map(Bytes::from))
        }))
    }

    fn store(&self, pages: Vec<(PageId, Bytes)>) -> LocalBoxFuture<'_, Result<(), VolumeError>> {
        let numbers = Arc::clone(&self.numbers);
        Box::pin(run(&self.database, move |database| {
            database.admit()?;
            lock(&numbers).add(pages.iter().map(|(page, _)| page.0));
            database.write(|writer| {
                let batch = put_pages(writer, pages)?;
                writer.write(batch)
            })
        }))
    }

    fn commit(
        &self,
        owner: &str,
        pages: Vec<(PageId, Bytes)>,
        record: Bytes,
    ) -> LocalBoxFuture<'_, Result<(), VolumeError>> {
        let owner = owner.to_owned();
        let numbers = Arc::clone(&self.numbers);
        Box::pin(run(&self.database, move |database| {
            database.admit()?;
            // Before they are written, so that the set is never short of one.
            let highest = lock(&numbers).add(pages.iter().map(|(page, _)| page.0));
            database.write(|writer| {
                let mut batch = put_pages(writer, pages)?;
                // Last, and synced with everything before it: a record never stands without its pages.
                batch.put(HIGHEST_PAGE, highest.to_be_bytes());
                batch.put_cf(writer.family(Family::Records), owner, record);
                writer.write_synced(batch)
            })
        }))
    }

    fn record(&self, owner: &str) -> LocalBoxFuture<'_, Result<Option<Bytes>, VolumeError>> {
        let owner = owner.to_owned();
        Box::pin(run(&self.database, move |database| {
            let found = database.read(|view| none_if_damaged(view.get(Family::Records, owner.as_bytes())))?;
            Ok(found.map(Bytes::from))
        }))
    }

    fn records(&self) -> LocalBoxFuture<'_, Result<Vec<(String, Bytes)>, VolumeError>> {
        Box::pin(run(&self.database, |database| {
            let found = database.read(|view| {
                let records = view.db().iterator_cf(view.family(Family::Records), IteratorMode::Start);
                records.collect::<Result<Vec<_>, Error>>()
            })?;
            let text = |owner: Box<[u8]>| String::from_utf8_lossy(&owner).into_owned();
            Ok(found.into_iter().map(|(owner, record)| (text(owner), record.into())).collect())
        }))
    }

    fn forget(&self, owner: &str) -> LocalBoxFuture<'_, Result<(), VolumeError>> {
        let owner = owner.to_owned();
        Box::pin(run(&self.database, move |database| {
            database.write(|writer| {
                let mut batch = WriteBatch::default();
                batch.delete_cf(writer.family(Family::Records), owner);
                writer.write_synced(batch)
            })
        }))
    }

    fn highest(&self) -> LocalBoxFuture<'_, Result<u64, VolumeError>> {
        Box::pin(async move { Ok(lock(&self.numbers).highest) })
    }

    fn sweep(
        &self,
        up_to: PageId,
        live: &dyn Fn(PageId) -> bool,
    ) -> LocalBoxFuture<'_, Result<u64, VolumeError>> {
        // `live` is asked here and now, on the caller's thread: it may not outlive this call.
        let dead = lock(&self.numbers).dead(up_to, live);
        let numbers = Arc::clone(&self.numbers);
        Box::pin(run(&self.database, move |database| {
            for some in dead.chunks(SWEEP_PAGES_MAX) {
                database.write(|writer| {
                    let mut batch = WriteBatch::default();
                    for number in some {
                        batch.delete_cf(writer.family(Family::Pages), number.to_be_bytes());
                        batch.delete_cf(writer.family(Family::PageNumbers), number.to_be_bytes());
                    }
                    // Not synced: a page that a power loss brings back is found dead again by the next sweep.
                    writer.write(batch)
                })?;
                let mut numbers = lock(&numbers);
                some.iter().for_each(|number| {
                    numbers.stored.remove(number);
                });
            }
            Ok(dead.len() as u64)
        }))
    }
}

/// Pages, in batches that are written as they fill up; the last one is the caller's.
fn put_pages(writer: &Writer<'_>, pages: Vec<(PageId, Bytes)>) -> Result<WriteBatch, Error> {
    let (of_pages, of_numbers) = (writer.family(Family::Pages), writer.family(Family::PageNumbers));
    let mut batch = WriteBatch::default();
    for (page, bytes) in pages {
        let key = page.0.to_be_bytes();
        batch.put_cf(of_pages, key, bytes);
        batch.put_cf(of_numbers, key, b"");
        if batch.size_in_bytes() >= BATCH_BYTES_MAX {
            writer.write(std::mem::take(&mut batch))?;
        }
    }
    Ok(batch)
}

impl Numbers {
    /// The highest ever, with these.
    fn add(&mut self, numbers: impl Iterator<Item = u64>) -> u64 {
        self.stored.extend(numbers);
        self.highest = self.highest.max(self.stored.last().copied().unwrap_or(0));
        self.highest
    }

    fn dead(&self, up_to: PageId, live: &dyn Fn(PageId) -> bool) -> Vec<u64> {
        self.stored.range(..=up_to.0).copied().filter(|number| !live(PageId(*number))).collect()
    }
}

fn number_of(key: &[u8]) -> Option<u64> {
    key.try_into().ok().map(u64::from_be_bytes)
}

/// A page or record that is damaged is as good as none: the caller rebuilds the map from the backend.
fn none_if_damaged(found: Result<Option<Vec<u8>>, Error>) -> Result<Option<Vec<u8>>, Error> {
    match found {
        Err(error) if error.kind() == ErrorKind::Corruption => {
            tracing::error!(%error, "a damaged map page or checkpoint is left out; the map is rebuilt");
            Ok(None)
        }
        found => found,
    }
}
