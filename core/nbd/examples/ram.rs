//! A disk in memory behind the server: for trying it out with other programs' clients, and as the ceiling in benches.
//!
//! `ram SOCKET [SIZE_BYTES] [null]`: with `null` nothing is kept, and reads give zeros. Ends at SIGINT or SIGTERM.

use anyhow::Context as _;
use bytes::Bytes;
use ovs_nbd::{
    ClientInfo, Device, ExportInfo, Exports, Extent, NbdError, OpenError, ReadReply, Server, ServerOptions,
    ZeroKind, serve_unix,
};
use ovs_units::{ByteCount, ByteOffset, ByteRange};
use std::{cell::RefCell, rc::Rc};
use tokio::{
    net::UnixListener,
    signal::unix::{SignalKind, signal},
    task::LocalSet,
};
use tokio_util::sync::CancellationToken;

static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

struct Ram {
    size: ByteCount,
    /// `None`: the null disk.
    bytes: Option<RefCell<Vec<u8>>>,
}

fn span(range: ByteRange) -> std::ops::Range<usize> {
    range.start.0 as usize..range.end().0 as usize
}

impl Device for Ram {
    fn size(&self) -> ByteCount {
        self.size
    }

    fn read_only(&self) -> bool {
        false
    }

    fn description(&self) -> String {
        "a disk in memory".to_owned()
    }

    async fn read(&self, range: ByteRange) -> Result<ReadReply, NbdError> {
        let length = range.length.0 as usize;
        Ok(ReadReply::Data(match &self.bytes {
            Some(bytes) => Bytes::copy_from_slice(&bytes.borrow()[span(range)]),
            None if length <= ZEROS.len() => Bytes::from_static(&ZEROS[..length]),
            None => Bytes::from(vec![0; length]),
        }))
    }

    async fn write(&self, offset: ByteOffset, data: Bytes, _fua: bool) -> Result<(), NbdError> {
        if let Some(bytes) = &self.bytes {
            let start = offset.0 as usize;
            bytes.borrow_mut()[start..start + data.len()].copy_from_slice(&data);
        }
        Ok(())
    }

    async fn zero(&self, range: ByteRange, _fua: bool, _kind: ZeroKind) -> Result<(), NbdError> {
        if let Some(bytes) = &self.bytes {
            bytes.borrow_mut()[span(range)].fill(0);
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), NbdError> {
        Ok(())
    }

    async fn cache(&self, _range: ByteRange) -> Result<(), NbdError> {
        Ok(())
    }

    async fn block_status(&self, range: ByteRange, limit: usize) -> Result<Vec<Extent>, NbdError> {
        let Some(bytes) = &self.bytes else { return Ok(vec![Extent::hole(range.length)]) };
        let bytes = bytes.borrow();
        let clusters = bytes[span(range)].chunks(4096).map(|cluster| {
            let length = ByteCount(cluster.len() as u64);
            if cluster.iter().all(|byte| *byte == 0) { Extent::hole(length) } else { Extent::data(length) }
        });
        let mut extents: Vec<Extent> = Vec::new();
        for next in clusters {
            let is_full = extents.len() == limit;
            match extents.last_mut() {
                Some(last) if last.hole == next.hole => last.length.0 += next.length.0,
                _ if is_full => break,
                _ => extents.push(next),
            }
        }
        Ok(extents)
    }

    async fn closed(&self) {
        std::future::pending().await
    }
}

struct OneDisk(Rc<Ram>);

impl Exports for OneDisk {
    type Device = Ram;

    async fn open(&self, _name: &str, _client: ClientInfo) -> Result<Rc<Ram>, OpenError> {
        Ok(Rc::clone(&self.0))
    }

    async fn info(&self, _name: &str) -> Result<ExportInfo, OpenError> {
        let Ram { size, .. } = *self.0;
        Ok(ExportInfo { size, read_only: false, multi_conn: true, description: self.0.description() })
    }

    async fn list(&self) -> Vec<String> {
        vec![String::new()]
    }
}

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let socket = arguments.next().context("usage: ram SOCKET [SIZE_BYTES] [null]")?;
    let size: u64 = arguments.next().map_or(Ok(1 << 30), |size| size.parse()).context("SIZE_BYTES")?;
    let is_null = arguments.next().is_some_and(|word| word == "null");
    let bytes = if is_null { None } else { Some(RefCell::new(vec![0; usize::try_from(size)?])) };
    let exports = Rc::new(OneDisk(Rc::new(Ram { size: ByteCount(size), bytes })));

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let listener = UnixListener::bind(&socket).with_context(|| socket.clone())?;
        let server = Server::new(ServerOptions::default());
        let stop = CancellationToken::new();
        let serving = serve_unix(Rc::clone(&server), listener, exports, stop.clone());
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        tokio::pin!(serving);
        tokio::select! {
            () = &mut serving => {}
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        stop.cancel();
        serving.await;
        println!("{:?}", server.stats());
        std::fs::remove_file(&socket)?;
        Ok(())
    })
}
