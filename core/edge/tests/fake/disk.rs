//! vDisks in memory behind the NBD server.

use super::World;
use bytes::{Bytes, BytesMut};
use ovs_nbd::{ClientInfo, Device, ExportInfo, Exports, Extent, NbdError, OpenError, ReadReply, ZeroKind};
use ovs_units::{ByteCount, ByteOffset, ByteRange, VdiskId};
use std::{collections::BTreeMap, rc::Rc};

const PAGE: u64 = 4096;

/// Sparse contents.
#[derive(Default)]
pub struct Pages(BTreeMap<u64, Vec<u8>>);

impl Pages {
    pub fn read(&self, offset: u64, length: u64) -> Bytes {
        let mut out = BytesMut::zeroed(length as usize);
        for (at, inside, count, from) in parts(offset, length) {
            if let Some(page) = self.0.get(&at) {
                out[from..from + count].copy_from_slice(&page[inside..inside + count]);
            }
        }
        out.freeze()
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        for (at, inside, count, from) in parts(offset, data.len() as u64) {
            let page = self.0.entry(at).or_insert_with(|| vec![0; PAGE as usize]);
            page[inside..inside + count].copy_from_slice(&data[from..from + count]);
        }
    }

    pub fn zero(&mut self, offset: u64, length: u64) {
        let touched: Vec<u64> =
            self.0.range(offset / PAGE..=(offset + length) / PAGE).map(|(at, _)| *at).collect();
        for at in touched {
            let (start, end) = (offset.max(at * PAGE), (offset + length).min((at + 1) * PAGE));
            if start >= end {
                continue;
            }
            if end - start == PAGE {
                self.0.remove(&at);
            } else if let Some(page) = self.0.get_mut(&at) {
                page[(start - at * PAGE) as usize..(end - at * PAGE) as usize].fill(0);
            }
        }
    }

    /// What lies past the size is gone for good.
    pub fn cut(&mut self, size_bytes: u64) {
        self.zero(size_bytes, u64::MAX / 2 - size_bytes);
    }

    pub fn allocated_bytes(&self) -> u64 {
        self.0.len() as u64 * PAGE
    }

    fn is_hole(&self, at: u64) -> bool {
        !self.0.contains_key(&at)
    }
}

/// (page, offset in it, bytes, offset in the range)
fn parts(offset: u64, length: u64) -> impl Iterator<Item = (u64, usize, usize, usize)> {
    let mut at = offset;
    std::iter::from_fn(move || {
        (at < offset + length).then(|| {
            let inside = at % PAGE;
            let count = (PAGE - inside).min(offset + length - at);
            let part = (at / PAGE, inside as usize, count as usize, (at - offset) as usize);
            at += count;
            part
        })
    })
}

/// The one export of a vDisk's socket.
pub struct RamExports {
    pub world: World,
    pub id: VdiskId,
}

pub struct RamDisk {
    world: World,
    id: VdiskId,
    is_read_only: bool,
}

impl Exports for RamExports {
    type Device = RamDisk;

    async fn open(&self, name: &str, client: ClientInfo) -> Result<Rc<RamDisk>, OpenError> {
        let mut state = self.world.state();
        let session = client.session.ok_or_else(|| OpenError::Denied("the edge names its session".into()))?;
        let attachment = state.attachments.get(&session.id.0);
        let attachment = attachment.ok_or_else(|| OpenError::Denied("no such attachment".into()))?;
        if !name.is_empty() || attachment.vdisk != self.id || session.generation.0 < attachment.generation {
            return Err(OpenError::Denied("fenced".into()));
        }
        let is_read_only = attachment.mode == ovs_api::AttachmentMode::ReadOnly;
        state.sessions.push((session.id.0, session.generation.0));
        Ok(Rc::new(RamDisk { world: self.world.clone(), id: self.id, is_read_only }))
    }

    async fn info(&self, _name: &str) -> Result<ExportInfo, OpenError> {
        let size = self.world.state().vdisks.get(&self.id).map(|vdisk| ByteCount(vdisk.size_bytes));
        let size = size.ok_or_else(|| OpenError::NotFound("deleted".into()))?;
        Ok(ExportInfo { size, read_only: false, multi_conn: true, description: String::new() })
    }

    async fn list(&self) -> Vec<String> {
        vec![String::new()]
    }
}

impl RamDisk {
    /// A little time passes before anything happens, so that a kill meets requests at every stage.
    async fn with<T>(&self, work: impl FnOnce(&mut Pages) -> T) -> Result<T, NbdError> {
        tokio::task::yield_now().await;
        let mut is_stalled = self.world.state().is_stalled.subscribe();
        // The sender lives as long as the world.
        let _ = is_stalled.wait_for(|is_stalled| !is_stalled).await;
        let done = self.world.state().pages.get_mut(&self.id).map(work);
        tokio::task::yield_now().await;
        done.ok_or_else(|| NbdError::Io("deleted".into()))
    }
}

impl Device for RamDisk {
    fn size(&self) -> ByteCount {
        ByteCount(self.world.state().vdisks.get(&self.id).map_or(0, |vdisk| vdisk.size_bytes))
    }

    fn read_only(&self) -> bool {
        self.is_read_only
    }

    fn description(&self) -> String {
        String::new()
    }

    async fn read(&self, range: ByteRange) -> Result<ReadReply, NbdError> {
        self.with(|pages| pages.read(range.start.0, range.length.0).into()).await
    }

    async fn write(&self, offset: ByteOffset, data: Bytes, _fua: bool) -> Result<(), NbdError> {
        self.with(|pages| pages.write(offset.0, &data)).await
    }

    async fn zero(&self, range: ByteRange, _fua: bool, _kind: ZeroKind) -> Result<(), NbdError> {
        self.with(|pages| pages.zero(range.start.0, range.length.0)).await
    }

    async fn flush(&self) -> Result<(), NbdError> {
        self.with(|_| ()).await?;
        self.world.state().flushes += 1;
        Ok(())
    }

    async fn cache(&self, _range: ByteRange) -> Result<(), NbdError> {
        Ok(())
    }

    async fn block_status(&self, range: ByteRange, limit: usize) -> Result<Vec<Extent>, NbdError> {
        self.with(|pages| {
            let mut extents: Vec<Extent> = Vec::new();
            for (at, _, count, _) in parts(range.start.0, range.length.0) {
                let hole = pages.is_hole(at);
                if let Some(last) = extents.last_mut()
                    && last.hole == hole
                {
                    last.length.0 += count as u64;
                } else if extents.len() < limit {
                    extents.push(Extent { length: ByteCount(count as u64), hole, zero: hole });
                } else {
                    break;
                }
            }
            extents
        })
        .await
    }

    async fn closed(&self) {
        std::future::pending().await
    }
}
