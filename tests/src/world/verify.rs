//! The engine's answers against the model.

use super::{Content, DiskModel, Failure, World};
use ovs_units::{ByteCount, ByteOffset, ByteRange, CLUSTER_SIZE_BYTES, Cluster, SnapshotId, VdiskId};
use ovs_volume::{Vdisk, VolumeError};
use std::collections::BTreeSet;

/// A vDisk up to this size is read whole; of a larger one only what was written and its neighbours.
const WHOLE_BYTES_MAX: u64 = 4 << 20;
const READ_BYTES_MAX: u64 = 256 << 10;

impl World {
    pub(super) fn verify_all(&mut self) -> Result<(), Failure> {
        (0..self.disks.len()).try_for_each(|index| self.verify_disk(index))
    }

    /// Everything about one vDisk.
    pub(super) fn verify_disk(&self, index: usize) -> Result<(), Failure> {
        let (disk, vdisk) = (&self.disks[index], self.vdisk(index)?);
        if vdisk.size() != disk.content.size() {
            return Err(format!("vDisk {index} has {:?}, not {:?}", vdisk.size(), disk.content.size()));
        }
        if vdisk.properties() != disk.properties.as_bytes() {
            return Err(format!(
                "vDisk {index} has properties {:?}, not {}",
                vdisk.properties(),
                disk.properties
            ));
        }
        self.verify_snapshots(disk, &vdisk).map_err(|failure| format!("vDisk {index}: {failure}"))?;
        self.compare(&vdisk, None, &disk.content).map_err(|failure| format!("vDisk {index}: {failure}"))?;
        for (at, snapshot) in disk.snapshots.iter().enumerate() {
            self.compare(&vdisk, Some(snapshot.id), &snapshot.content)
                .map_err(|failure| format!("vDisk {index} snapshot {at}: {failure}"))?;
        }
        Ok(())
    }

    fn verify_snapshots(&self, disk: &DiskModel, vdisk: &Vdisk) -> Result<(), Failure> {
        let found: Vec<_> = vdisk.snapshots().into_iter().filter(|info| !info.hidden).collect();
        let is_same = found.len() == disk.snapshots.len()
            && found.iter().zip(&disk.snapshots).all(|(info, snapshot)| {
                info.id == snapshot.id && info.name == snapshot.name && info.size == snapshot.content.size()
            });
        let expected = || disk.snapshots.iter().map(|snapshot| &snapshot.name).collect::<Vec<_>>();
        if is_same { Ok(()) } else { Err(format!("snapshots {found:?}, not {:?}", expected())) }
    }

    pub(super) fn verify_range(&self, index: usize, range: ByteRange) -> Result<(), Failure> {
        let content = &self.disks[index].content;
        let range = ByteRange { length: ByteCount(range.length.0.min(READ_BYTES_MAX)), ..range };
        self.compare_range(&self.vdisk(index)?, None, content, range)
            .map_err(|failure| format!("vDisk {index}: {failure}"))
    }

    /// Why it is not as `content`, if so. Of a huge one also what any of `others` has is looked at.
    pub(super) fn difference(
        &self,
        index: usize,
        content: &Content,
        others: &[Content],
    ) -> Result<Option<Failure>, Failure> {
        let vdisk = self.vdisk(index)?;
        if vdisk.size() != content.size() {
            return Ok(Some(format!("its size is {:?}, not {:?}", vdisk.size(), content.size())));
        }
        if let Err(difference) = self.compare(&vdisk, None, content) {
            return Ok(Some(difference));
        }
        if content.size().0 <= WHOLE_BYTES_MAX {
            return Ok(None);
        }
        let more: BTreeSet<Cluster> = others.iter().flat_map(Content::interesting).collect();
        let inside = |cluster: &&Cluster| cluster.byte_offset().0 < content.size().0;
        let difference = more.iter().filter(inside).find_map(|cluster| {
            let range = range(cluster.byte_offset().0, CLUSTER_SIZE_BYTES);
            self.compare_range(&vdisk, None, content, range).err()
        });
        Ok(difference)
    }

    fn compare(&self, vdisk: &Vdisk, snapshot: Option<SnapshotId>, content: &Content) -> Result<(), Failure> {
        let size = content.size().0;
        if size <= WHOLE_BYTES_MAX {
            let mut at = 0;
            while at < size {
                let length = READ_BYTES_MAX.min(size - at);
                self.compare_range(vdisk, snapshot, content, range(at, length))?;
                at += length;
            }
            return Ok(());
        }
        content.interesting().into_iter().try_for_each(|cluster| {
            self.compare_range(vdisk, snapshot, content, range(cluster.byte_offset().0, CLUSTER_SIZE_BYTES))
        })
    }

    fn compare_range(
        &self,
        vdisk: &Vdisk,
        snapshot: Option<SnapshotId>,
        content: &Content,
        range: ByteRange,
    ) -> Result<(), Failure> {
        let found = self.run(async {
            match snapshot {
                None => vdisk.read(range).await,
                Some(id) => vdisk.read_snapshot(id, range).await,
            }
        });
        if self.is_broken(&found) {
            return Ok(()); // nothing is served; the next step begins with a restart
        }
        let found = found?;
        let expected = content.read(range);
        if found[..] == expected[..] {
            return Ok(());
        }
        if found.len() != expected.len() {
            return Err(format!("{range:?} reads as {} bytes", found.len()));
        }
        let wrong = (0..found.len()).find(|at| found[*at] != expected[*at]).unwrap_or(0);
        let at = range.start.0 + wrong as u64;
        let (cluster, offset) = (at / CLUSTER_SIZE_BYTES, at % CLUSTER_SIZE_BYTES);
        let show = |bytes: &[u8]| format!("{:02x?}", &bytes[wrong..bytes.len().min(wrong + 8)]);
        let (found, expected) = (show(&found), show(&expected));
        Err(format!("byte {offset} of cluster {cluster} reads {found}, not {expected}"))
    }

    /// Extents follow each other over the whole vDisk, and what is in none of them is zeros.
    pub(super) fn extents(&self, disk: u8) -> Result<(), Failure> {
        let Some(index) = self.index(disk) else { return Ok(()) };
        let (vdisk, content) = (self.vdisk(index)?, &self.disks[index].content);
        let size = content.size().0;
        let (mut at, mut holes) = (0, Vec::new());
        for _ in 0..100_000 {
            if at == size {
                break;
            }
            let (rest, vdisk) = (range(at, size - at), vdisk.clone());
            let limit = 1 + self.random.below(5) as usize;
            let extents = self.run(async move { vdisk.extents(rest, limit).await });
            if self.is_broken(&extents) {
                return Ok(());
            }
            let extents = extents?;
            if extents.is_empty()
                || extents.len() > limit
                || extents.iter().any(|extent| extent.length.0 == 0)
            {
                return Err(format!("vDisk {index} from {at}, {limit} at most: extents {extents:?}"));
            }
            for extent in extents {
                if !extent.allocated {
                    holes.push(range(at, extent.length.0));
                }
                at += extent.length.0;
            }
        }
        if at != size {
            return Err(format!("the extents of vDisk {index} end at {at}, not {size}"));
        }
        for cluster in content.interesting() {
            let bytes = range(cluster.byte_offset().0, CLUSTER_SIZE_BYTES);
            let is_hole = holes.iter().any(|hole| hole.start <= bytes.start && bytes.end() <= hole.end());
            if is_hole && content.read(bytes).iter().any(|byte| *byte != 0) {
                return Err(format!("cluster {} of vDisk {index} has data and is called a hole", cluster.0));
            }
        }
        Ok(())
    }

    /// A deleted vDisk is there for nobody.
    pub(super) fn check_gone(&mut self, id: VdiskId) -> Result<(), Failure> {
        match self.open(id)? {
            Err(VolumeError::NotFound(_)) => Ok(()),
            Err(error) => Err(format!("a deleted vDisk is not said to be gone: {error:?}")),
            Ok(()) => Err("a deleted vDisk opens".to_owned()),
        }
    }

    /// Does a clone that lives, or a clone of such a one, come from it?
    pub(super) fn has_living_descendant(&self, id: VdiskId) -> bool {
        let is_base = |base: &Option<(VdiskId, SnapshotId)>| base.is_some_and(|(parent, _)| parent == id);
        self.disks.iter().any(|disk| is_base(&disk.base))
            || self.gone.iter().any(|(child, base)| is_base(base) && self.has_living_descendant(*child))
    }
}

fn range(start: u64, length: u64) -> ByteRange {
    ByteRange { start: ByteOffset(start), length: ByteCount(length) }
}
