//! SCOs on the backend: their names, how they are made, and verified reads.

use crate::VolumeError;
use bytes::Bytes;
use ovs_backend::{Backend, ObjectName};
use ovs_format::sco::{self, ScoRef};
use ovs_units::{CLUSTER_SIZE_BYTES, Epoch, PutId, ScoNumber, VdiskId, planted};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
};

/// Headers kept in memory: 4096 of 4 MiB SCOs are 16 GiB of data and 16 MiB here.
const HEADERS_MAX: usize = 4096;

/// The folder of everything of a vDisk on its backend.
pub(crate) fn vdisk_prefix(vdisk: VdiskId) -> String {
    format!("v/{}/", vdisk.0.simple())
}

pub(crate) fn object_name(text: String) -> ObjectName {
    ObjectName::new(text).expect("our own names are object names")
}

pub(crate) fn sco_prefix(vdisk: VdiskId) -> String {
    format!("{}s/", vdisk_prefix(vdisk))
}

/// Which SCO an object of this name is; none for a name that [`sco_name`] does not give.
pub(crate) fn parse_sco_name(name: &ObjectName, prefix: &str) -> Option<(Epoch, ScoNumber)> {
    let (epoch, number) = name.as_str().strip_prefix(prefix)?.split_once('-')?;
    let parse = |text: &str| u64::from_str_radix(text, 16).ok();
    let (epoch, number) = (Epoch(parse(epoch)?), ScoNumber(parse(number)?));
    // As we write them: "+7" is a number, but no name of ours.
    (format!("{prefix}{:016x}-{:016x}", epoch.0, number.0) == name.as_str()).then_some((epoch, number))
}

pub(crate) fn sco_name(vdisk: VdiskId, epoch: Epoch, number: ScoNumber) -> ObjectName {
    object_name(format!("{}{:016x}-{:016x}", sco_prefix(vdisk), epoch.0, number.0))
}

/// An SCO to be put: the object's parts and what the map will keep of it.
pub(crate) struct NewSco {
    pub(crate) reference: ScoRef,
    pub(crate) parts: Vec<Bytes>,
}

impl NewSco {
    /// `data` are whole clusters, `checksums` theirs.
    pub(crate) fn new(
        vdisk: VdiskId,
        epoch: Epoch,
        number: ScoNumber,
        put: PutId,
        data: Vec<Bytes>,
        checksums: &[u32],
    ) -> NewSco {
        let (header, reference) = sco::encode_header(vdisk, epoch, number, put, checksums);
        let mut parts = vec![Bytes::from(header)];
        parts.extend(data);
        NewSco { reference, parts }
    }

    pub(crate) fn name(&self) -> ObjectName {
        sco_name(self.reference.vdisk, self.reference.epoch, self.reference.number)
    }
}

/// The headers of SCOs that were read lately.
#[derive(Default)]
pub(crate) struct ScoHeaders {
    known: RefCell<HashMap<PutId, Known>>,
    tick: Cell<u64>,
}

/// The name and the checksums of an SCO, and when they were last used.
type Known = (Rc<Header>, u64);

struct Header {
    name: ObjectName,
    checksums: Vec<u32>,
}

impl Header {
    async fn read(
        &self,
        backend: &dyn Backend,
        sco: &ScoRef,
        offset: u32,
        count: u32,
    ) -> Result<Bytes, VolumeError> {
        let Header { name, checksums } = self;
        let length = u64::from(count) * CLUSTER_SIZE_BYTES;
        let bytes = backend.get_range(name, sco.cluster_offset_bytes(offset), length).await?;
        if bytes.len() as u64 != length {
            let found = bytes.len();
            return Err(VolumeError::Damaged(format!(
                "object {name} is too short: {found} of {length} bytes"
            )));
        }
        let clusters = bytes.chunks(CLUSTER_SIZE_BYTES as usize);
        for (index, (cluster, expected)) in clusters.zip(&checksums[offset as usize..]).enumerate() {
            let found = ovs_format::checksum(cluster);
            if found != *expected && !planted("read: an SCO's clusters are not verified") {
                let at = offset as usize + index;
                return Err(VolumeError::Damaged(format!(
                    "object {name}, cluster {at}: checksum {found:08x} where {expected:08x} was expected"
                )));
            }
        }
        Ok(bytes)
    }
}

impl ScoHeaders {
    /// Clusters `offset .. offset + count` of an SCO, verified.
    pub(crate) async fn read(
        &self,
        backend: &dyn Backend,
        sco: &ScoRef,
        offset: u32,
        count: u32,
    ) -> Result<Bytes, VolumeError> {
        let header = self.header(backend, sco).await?;
        header.read(backend, sco, offset, count).await
    }

    /// The same with the checksums that they were put with.
    pub(crate) async fn read_with_sums(
        &self,
        backend: &dyn Backend,
        sco: &ScoRef,
        offset: u32,
        count: u32,
    ) -> Result<(Bytes, Vec<u32>), VolumeError> {
        let header = self.header(backend, sco).await?;
        let bytes = header.read(backend, sco, offset, count).await?;
        Ok((bytes, header.checksums[offset as usize..][..count as usize].to_vec()))
    }

    async fn header(&self, backend: &dyn Backend, sco: &ScoRef) -> Result<Rc<Header>, VolumeError> {
        let tick = self.tick.get() + 1;
        self.tick.set(tick);
        if let Some((header, used)) = self.known.borrow_mut().get_mut(&sco.put) {
            *used = tick;
            return Ok(header.clone());
        }
        let name = sco_name(sco.vdisk, sco.epoch, sco.number);
        let length = sco::header_bytes(sco.cluster_count as usize) as u64;
        let header = backend.get_range(&name, 0, length).await?;
        let checksums = sco::decode_header(&header, sco)
            .map_err(|error| VolumeError::Damaged(format!("object {name}: {error}")))?;
        let header = Rc::new(Header { name, checksums });
        let mut known = self.known.borrow_mut();
        if known.len() >= HEADERS_MAX {
            // The half that was not used for longest goes.
            let mut ticks: Vec<u64> = known.values().map(|(_, used)| *used).collect();
            let (_, median, _) = ticks.select_nth_unstable(HEADERS_MAX / 2);
            let median = *median;
            known.retain(|_, (_, used)| *used > median);
        }
        known.insert(sco.put, (header.clone(), tick));
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ovs_backend::{CountingBackend, MemoryBackend, Urgency};
    use uuid::Uuid;

    #[test]
    fn headers_that_were_used_lately_are_kept() {
        let backend = CountingBackend::new(MemoryBackend::new());
        let headers = ScoHeaders::default();
        let case = async {
            let mut scos = Vec::new();
            for number in 1..=HEADERS_MAX as u64 + 1 {
                let (put, data) = (PutId(Uuid::from_u128(number.into())), vec![number as u8; 4096]);
                let sum = ovs_format::checksum(&data);
                let vdisk = VdiskId(Uuid::from_u128(1));
                let sco = NewSco::new(vdisk, Epoch(1), ScoNumber(number), put, vec![data.into()], &[sum]);
                backend.put(&sco.name(), sco.parts, Urgency::Normal).await.unwrap();
                scos.push(sco.reference);
            }
            let gets = async |sco: &ScoRef| {
                let before = backend.counts().get.calls;
                headers.read(&backend, sco, 0, 1).await.unwrap();
                backend.counts().get.calls - before
            };
            let (last, others) = scos.split_last().unwrap();
            for sco in others {
                assert_eq!(gets(sco).await, 2, "its header and its data");
            }
            assert_eq!(gets(&others[0]).await, 1);
            assert_eq!(gets(last).await, 2);
            assert_eq!(headers.known.borrow().len(), HEADERS_MAX / 2);
            for kept in [&others[0], &others[HEADERS_MAX - 1], last] {
                assert_eq!(gets(kept).await, 1);
            }
            assert_eq!(gets(&others[1]).await, 2, "not used since the others");
        };
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(case);
    }

    #[test]
    fn of_a_damage_it_is_told_where_it_is() {
        let (backend, headers) = (MemoryBackend::new(), ScoHeaders::default());
        let data = vec![1; 4 * 4096];
        let mut sums = [ovs_format::checksum(&data[..4096]); 4];
        sums[3] ^= 1;
        let (vdisk, put) = (VdiskId(Uuid::from_u128(1)), PutId(Uuid::from_u128(2)));
        let sco = NewSco::new(vdisk, Epoch(1), ScoNumber(1), put, vec![data.into()], &sums);
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            backend.put(&sco.name(), sco.parts.clone(), Urgency::Normal).await.unwrap();
            headers.read(&backend, &sco.reference, 1, 2).await.unwrap();
            let damaged = headers.read(&backend, &sco.reference, 2, 2).await;
            assert!(
                matches!(&damaged, Err(VolumeError::Damaged(told)) if told.contains("cluster 3:")),
                "{damaged:?}"
            );
        });
    }

    #[test]
    fn only_our_own_names_are_scos() {
        let (vdisk, prefix) = (VdiskId(Uuid::from_u128(1)), sco_prefix(VdiskId(Uuid::from_u128(1))));
        let name = sco_name(vdisk, Epoch(3), ScoNumber(10));
        assert_eq!(parse_sco_name(&name, &prefix), Some((Epoch(3), ScoNumber(10))));
        for other in ["3-a", "0000000000000003", "x-y"] {
            assert_eq!(parse_sco_name(&object_name(format!("{prefix}{other}")), &prefix), None, "{other}");
        }
        assert_eq!(parse_sco_name(&name, "v/2/s/"), None);
    }
}
