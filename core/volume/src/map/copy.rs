//! Copies of the map on the backend: names, putting one, taking one into the local page store.
//!
//! Order: every part, then the root that names them. A root that can be read is a whole copy, or damaged.

use super::TOP_LEVEL;
use crate::engine::Context;
use crate::journal::Reading;
use crate::sco::{object_name, vdisk_prefix};
use crate::{PageId, PageStore, VolumeError};
use bytes::Bytes;
use ovs_backend::{Backend, BackendError, ObjectName, Urgency};
use ovs_format::FormatError;
use ovs_format::journal::Position;
use ovs_format::map_copy::{MapCopy, PartWriter, decode_part, relabel};
use ovs_format::page::{CheckpointRecord, RootEntry, decode_inner, decode_leaf, decode_table};
use ovs_units::{COUNTER_MAX, Epoch, JournalIndex, PutId, VdiskId};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};

/// Which copy of a vDisk's map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct CopyId {
    epoch: Epoch,
    index: JournalIndex,
    put: PutId,
}

impl CopyId {
    pub(crate) fn new(position: Position, put: PutId) -> CopyId {
        CopyId { epoch: position.epoch, index: position.index, put }
    }

    /// The journal record after which the map is so.
    pub(crate) fn position(&self) -> Position {
        Position { epoch: self.epoch, index: self.index }
    }

    fn text(&self, vdisk: VdiskId) -> String {
        let (epoch, index, put) = (self.epoch.0, self.index.0, self.put.0.simple());
        format!("{}{epoch:016x}-{index:016x}-{put}", prefix(vdisk))
    }

    fn root(&self, vdisk: VdiskId) -> ObjectName {
        object_name(self.text(vdisk))
    }

    fn part(&self, vdisk: VdiskId, number: u32) -> ObjectName {
        object_name(format!("{}-{number:08x}", self.text(vdisk)))
    }

    /// From a name behind the prefix: a root's, or a part's.
    fn parse(name: &str) -> Option<(CopyId, bool)> {
        let mut fields = name.split('-');
        // As we write them, and with successors: anything else is no name of ours.
        let mut number = || {
            let text = fields.next().filter(|text| text.len() == 16)?;
            u64::from_str_radix(text, 16).ok().filter(|number| *number < COUNTER_MAX)
        };
        let (epoch, index) = (Epoch(number()?), JournalIndex(number()?));
        let put = PutId(uuid::Uuid::try_parse(fields.next()?).ok()?);
        Some((CopyId { epoch, index, put }, fields.next().is_none()))
    }
}

fn prefix(vdisk: VdiskId) -> String {
    format!("{}c/", vdisk_prefix(vdisk))
}

/// Every copy that has a root, the newest first.
pub(crate) async fn list(backend: &dyn Backend, vdisk: VdiskId) -> Result<Vec<CopyId>, VolumeError> {
    let mut found = Vec::new();
    for (_, copy, is_root, _) in objects(backend, vdisk).await? {
        found.extend(is_root.then_some(copy));
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found)
}

/// Bytes of a copy on the backend, root and parts.
pub(crate) async fn bytes_of(
    backend: &dyn Backend,
    vdisk: VdiskId,
    copy: CopyId,
) -> Result<u64, VolumeError> {
    let all = objects(backend, vdisk).await?;
    Ok(all.iter().filter(|(_, other, ..)| *other == copy).map(|(.., bytes)| bytes).sum())
}

/// Removes everything of the copies that `is_old` names.
pub(crate) async fn remove(
    backend: &dyn Backend,
    vdisk: VdiskId,
    is_old: impl Fn(CopyId) -> bool,
) -> Result<(), VolumeError> {
    for name in names_of(backend, vdisk, is_old).await? {
        backend.delete(&name).await?;
    }
    Ok(())
}

/// Roots and parts of the copies that `is_it` names.
pub(crate) async fn names_of(
    backend: &dyn Backend,
    vdisk: VdiskId,
    is_it: impl Fn(CopyId) -> bool,
) -> Result<Vec<ObjectName>, VolumeError> {
    let all = objects(backend, vdisk).await?.into_iter();
    Ok(all.filter(|(_, copy, ..)| is_it(*copy)).map(|(name, ..)| name).collect())
}

type Found = (ObjectName, CopyId, bool, u64);

async fn objects(backend: &dyn Backend, vdisk: VdiskId) -> Result<Vec<Found>, VolumeError> {
    let prefix = prefix(vdisk);
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = backend.list(&prefix, after.as_ref(), 1000).await?;
        let Some(last) = page.last() else { return Ok(found) };
        after = Some(last.name.clone());
        for object in page {
            let parsed = object.name.as_str().strip_prefix(&prefix).and_then(CopyId::parse);
            found.extend(parsed.map(|(copy, is_root)| (object.name, copy, is_root, object.length_bytes)));
        }
    }
}

/// The root object of a copy that nobody may have committed. Its parts were acknowledged before it was put.
pub(crate) async fn get(
    backend: &dyn Backend,
    vdisk: VdiskId,
    copy: CopyId,
    reading: Reading,
) -> Result<MapCopy, VolumeError> {
    let name = copy.root(vdisk);
    decode(vdisk, copy, &present(&name, reading.get(backend, &name).await)?)
}

fn decode(vdisk: VdiskId, copy: CopyId, root: &[u8]) -> Result<MapCopy, VolumeError> {
    let name = copy.root(vdisk);
    let root = MapCopy::decode(root, vdisk, copy.put).map_err(damaged(&name))?;
    match root.position() == copy.position() {
        true => Ok(root),
        false => Err(VolumeError::Damaged(format!("object {name} is of another record"))),
    }
}

async fn whole(backend: &dyn Backend, name: &ObjectName) -> Result<Bytes, VolumeError> {
    present(name, backend.get(name).await)
}

fn present(name: &ObjectName, read: Result<Bytes, BackendError>) -> Result<Bytes, VolumeError> {
    match read {
        Err(BackendError::NotFound { .. }) => Err(VolumeError::Damaged(format!("object {name} is missing"))),
        answer => Ok(answer?),
    }
}

fn damaged(name: &ObjectName) -> impl Fn(FormatError) -> VolumeError {
    move |error| VolumeError::Damaged(format!("object {name}: {error}"))
}

/// Where the pages of a map are, and who hears of one that cannot be read.
pub(crate) struct Pages<'a> {
    pub(crate) store: &'a dyn PageStore,
    pub(crate) unreadable: &'a dyn Fn(VolumeError) -> VolumeError,
}

impl Pages<'_> {
    /// The bytes of a page, which `check` finds good; what it says of them.
    pub(super) async fn checked<T>(
        &self,
        page: u64,
        check: impl FnOnce(&[u8]) -> Result<T, FormatError>,
    ) -> Result<(Bytes, T), VolumeError> {
        let load = async {
            let missing = || VolumeError::Damaged(format!("map page {page} is missing from the local store"));
            let bytes = self.store.load(PageId(page)).await?.ok_or_else(missing)?;
            let checked =
                check(&bytes).map_err(|error| VolumeError::Damaged(format!("map page {page}: {error}")))?;
            Ok((bytes, checked))
        };
        load.await.map_err(self.unreadable)
    }

    /// A page, and those that it names.
    async fn load(&self, page: u64, kind: Kind) -> Result<(Bytes, Vec<(u64, Kind)>), VolumeError> {
        self.checked(page, |bytes| named_by(page, kind, bytes)).await
    }
}

/// A copy may become all that there is of the map: nothing unsound goes into it.
fn named_by(page: u64, kind: Kind, bytes: &[u8]) -> Result<Vec<(u64, Kind)>, FormatError> {
    match kind {
        Kind::Table => decode_table(page, bytes).map(|_| Vec::new()),
        Kind::Level(0) => decode_leaf(page, bytes).map(|_| Vec::new()),
        Kind::Level(level) => {
            let children = decode_inner(page, bytes)?;
            Ok(children.iter().map(|child| (child.page, Kind::Level(level - 1))).collect())
        }
    }
}

/// Puts a copy of the maps of a checkpoint, which stays as it is meanwhile. `go_on` is asked between the parts.
/// Returns its bytes.
pub(crate) async fn put(
    mut parts: Parts<'_>,
    pages: Pages<'_>,
    maps: &CheckpointRecord,
    head: Bytes,
    go_on: &dyn Fn() -> Result<(), VolumeError>,
) -> Result<u64, VolumeError> {
    let Parts { backend, vdisk, copy, part_bytes, .. } = parts;
    let mut part = PartWriter::new(vdisk, copy.put, 0);
    let mut met: HashSet<u64> = HashSet::new();
    let roots = maps.snapshots.iter().map(|(_, root)| root.page).chain([maps.root.page]);
    let mut waiting: Vec<(u64, Kind)> = roots.map(|root| (root, Kind::Level(TOP_LEVEL))).collect();
    waiting.extend(maps.table_pages.iter().map(|page| (*page, Kind::Table)));
    while let Some((page, kind)) = waiting.pop() {
        if page == 0 || !met.insert(page) {
            continue;
        }
        let (bytes, named) = pages.load(page, kind).await?;
        waiting.extend(named);
        part.add(page, &bytes);
        if part.len() >= part_bytes {
            go_on()?;
            let next = PartWriter::new(vdisk, copy.put, parts.sums.len() as u32 + 1);
            parts.put(std::mem::replace(&mut part, next)).await?;
        }
    }
    if !part.is_empty() {
        go_on()?;
        parts.put(part).await?;
    }
    go_on()?;
    let root = MapCopy { put: copy.put, parts: parts.sums, maps: maps.clone(), head }.encode(vdisk);
    let bytes = parts.bytes + root.len() as u64;
    backend.put(&copy.root(vdisk), vec![root.into()], Urgency::Normal).await?;
    Ok(bytes)
}

/// What a page is.
enum Kind {
    Table,
    Level(u32),
}

/// Where a copy goes, and how much of it is there.
pub(crate) struct Parts<'a> {
    backend: &'a dyn Backend,
    vdisk: VdiskId,
    copy: CopyId,
    part_bytes: usize,
    sums: Vec<u32>,
    bytes: u64,
}

impl<'a> Parts<'a> {
    /// Nothing is there yet. Each part is put when it has grown to `part_bytes`.
    pub(crate) fn new(backend: &'a dyn Backend, vdisk: VdiskId, copy: CopyId, part_bytes: usize) -> Self {
        Parts { backend, vdisk, copy, part_bytes, sums: Vec::new(), bytes: 0 }
    }

    async fn put(&mut self, part: PartWriter) -> Result<(), VolumeError> {
        let (bytes, sum) = part.finish();
        let name = self.copy.part(self.vdisk, self.sums.len() as u32);
        self.sums.push(sum);
        self.bytes += bytes.len() as u64;
        Ok(self.backend.put(&name, vec![bytes.into()], Urgency::Normal).await?)
    }
}

/// Takes a copy into the local page store as the vDisk's checkpoint, under page numbers of this host.
pub(crate) async fn restore(
    backend: &dyn Backend,
    vdisk: VdiskId,
    copy: CopyId,
    context: &Context,
) -> Result<(), VolumeError> {
    let root = decode(vdisk, copy, &whole(backend, &copy.root(vdisk)).await?)?;
    let mut numbers: HashMap<u64, u64> = HashMap::new();
    let mut number = |label: u64| {
        *numbers.entry(label).or_insert_with(|| context.next_page.replace(context.next_page.get() + 1))
    };
    let mut stored = HashSet::new();
    for (index, sum) in root.parts.iter().enumerate() {
        let name = copy.part(vdisk, index as u32);
        let bytes = whole(backend, &name).await?;
        let mut pages = Vec::new();
        for (label, page) in
            decode_part(&bytes, vdisk, copy.put, index as u32, *sum).map_err(damaged(&name))?
        {
            let new = number(label);
            let page = relabel(page, label, new, &mut number).map_err(damaged(&name))?;
            stored.insert(label);
            pages.push((PageId(new), Bytes::from(page)));
        }
        context.pages.store(pages).await?;
    }
    let mut maps = root.maps;
    let mut renumber = |root: &mut RootEntry| {
        if root.page != 0 {
            root.page = number(root.page);
        }
    };
    renumber(&mut maps.root);
    maps.snapshots.iter_mut().for_each(|(_, root)| renumber(root));
    maps.table_pages.iter_mut().for_each(|page| *page = number(*page));
    if let Some(missing) = numbers.keys().find(|label| !stored.contains(label)) {
        let name = copy.root(vdisk);
        return Err(VolumeError::Damaged(format!("object {name} lacks page {missing}")));
    }
    context.pages.commit(&vdisk.to_string(), Vec::new(), Bytes::from(maps.encode(vdisk))).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use ovs_backend::MemoryBackend;
    use uuid::Uuid;

    const VDISK: VdiskId = VdiskId(Uuid::from_u128(1));

    #[test]
    fn of_a_copy_that_is_old_everything_goes_and_of_others_nothing() {
        let backend = MemoryBackend::new();
        let copy = |index| {
            let position = Position { epoch: Epoch(1), index: JournalIndex(index) };
            CopyId::new(position, PutId(Uuid::from_u128(index.into())))
        };
        let (old, new) = (copy(1), copy(2));
        let names = |copy: CopyId| [copy.root(VDISK), copy.part(VDISK, 0), copy.part(VDISK, 1)];
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            for name in names(old).into_iter().chain(names(new)) {
                backend.put(&name, vec![Bytes::from_static(b"x")], Urgency::Normal).await.unwrap();
            }
            remove(&backend, VDISK, |copy| copy == old).await.unwrap();
            assert_eq!(list(&backend, VDISK).await.unwrap(), [new]);
        });
        assert_eq!(backend.names(), names(new));
    }

    #[test]
    fn only_our_own_names_are_copies() {
        let put = "00000000000000000000000000000007";
        let parsed = |name: &str| CopyId::parse(name).map(|(copy, is_root)| (copy.index.0, is_root));
        let number = |number: u64| format!("{number:016x}");
        let last = COUNTER_MAX - 1;
        assert_eq!(parsed(&format!("{}-{}-{put}", number(1), number(last))), Some((last, true)));
        assert_eq!(parsed(&format!("{}-{}-{put}-00000000", number(1), number(2))), Some((2, false)));
        for other in [
            format!("{}-{}-{put}", number(1), number(COUNTER_MAX)),
            format!("{}-{}-{put}", number(COUNTER_MAX), number(1)),
            format!("1-{}-{put}", number(1)),
            format!("{}-{}", number(1), number(2)),
            format!("{}-{}-x", number(1), number(2)),
        ] {
            assert_eq!(parsed(&other), None, "{other}");
        }
    }

    /// Each page once, however many maps have it; each part as large as it is to be; and what it all weighs.
    #[test]
    fn a_copy_is_whole_parts_and_a_root() {
        use crate::map::{Checkpoint, Place, Table, Tree};
        use ovs_units::{Cluster, ClusterCount, ClusterRange, Sequence, SnapshotId};
        let (store, next_page) = (crate::MemoryPages::default(), std::cell::Cell::new(1));
        let position = Position { epoch: Epoch(1), index: JournalIndex(5) };
        let mut tree = Tree::empty(&crate::map::MapMemory::new(u64::MAX));
        for leaf in 0..3 {
            let range = ClusterRange { start: Cluster(leaf * 512), count: ClusterCount(9) };
            tree.set(range, Some(Place { sco: 0, offset: 0 }));
        }
        let snapshots = vec![(SnapshotId(Uuid::from_u128(3)), tree.clone())];
        let (sequence, table) = (Sequence(7), Table::default());
        let checkpoint = Checkpoint { position, sequence, tree, table, snapshots };
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            let maps = checkpoint.store(VDISK, &store, &next_page).await.unwrap();
            let pages = store.all().len();
            assert_eq!((pages as u64, next_page.get()), (3 + 3, 7), "leaves, and what leads to them");
            for (part_bytes, expected_parts) in [(1, pages), (usize::MAX, 1)] {
                let backend = MemoryBackend::new();
                let copy = CopyId::new(position, PutId(Uuid::from_u128(4)));
                let parts = Parts::new(&backend, VDISK, copy, part_bytes);
                let pages = Pages { store: &store, unreadable: &|error| error };
                let asked = std::cell::Cell::new(0);
                let go_on = || {
                    asked.set(asked.get() + 1);
                    Ok(())
                };
                let bytes = put(parts, pages, &maps, Bytes::from("head"), &go_on).await.unwrap();
                let all = backend.list("", None, 100).await.unwrap();
                assert_eq!((all.len(), asked.get()), (expected_parts + 1, expected_parts + 1));
                assert_eq!(bytes, all.iter().map(|object| object.length_bytes).sum::<u64>());
                assert_eq!(bytes_of(&backend, VDISK, copy).await.unwrap(), bytes);
                let other = CopyId::new(position, PutId(Uuid::from_u128(5)));
                assert_eq!(bytes_of(&backend, VDISK, other).await.unwrap(), 0);
                let root = get(&backend, VDISK, copy, Reading::ToTell).await.unwrap();
                assert_eq!((root.parts.len(), root.maps), (expected_parts, maps.clone()));
            }
        });
    }
}
