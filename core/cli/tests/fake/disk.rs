//! A sparse disk in memory, served over NBD by the real server.

use bytes::Bytes;
use ovs_nbd::{
    ClientInfo, Device, ExportInfo, Exports, Extent, NbdError, OpenError, ReadReply, Server, ServerOptions,
    ZeroKind, serve_unix,
};
use ovs_units::{ByteCount, ByteOffset, ByteRange};
use std::{
    collections::HashMap,
    path::PathBuf,
    rc::Rc,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    time::Duration,
};
use tokio_util::sync::CancellationToken;

const CLUSTER: u64 = 4096;
const PATIENCE: Duration = Duration::from_secs(10);

/// Clusters that were written; the others are holes.
#[derive(Clone)]
pub struct Disk(Arc<Shared>);

struct Shared {
    contents: Mutex<Contents>,
    was_opened: Condvar,
}

#[derive(Default)]
pub struct Contents {
    pub size_bytes: u64,
    pub clusters: HashMap<u64, Box<[u8; CLUSTER as usize]>>,
    /// Writes fail once so many bytes have been taken.
    pub fails_after_bytes: Option<u64>,
    pub written_bytes: u64,
    pub read_bytes: u64,
    pub flushes: u64,
    /// Requests never come back.
    pub is_stalled: bool,
    /// The names that clients opened.
    pub opened: Vec<String>,
}

impl Disk {
    pub fn new(size_bytes: u64) -> Disk {
        let contents = Mutex::new(Contents { size_bytes, ..Contents::default() });
        Disk(Arc::new(Shared { contents, was_opened: Condvar::new() }))
    }

    pub fn lock(&self) -> MutexGuard<'_, Contents> {
        self.0.contents.lock().unwrap()
    }

    /// Comes back when a client has opened it.
    #[track_caller]
    pub fn wait_for_a_client(&self) {
        let nobody = |contents: &mut Contents| contents.opened.is_empty();
        let waited = self.0.was_opened.wait_timeout_while(self.lock(), PATIENCE, nobody).unwrap();
        assert!(!waited.1.timed_out(), "no client came");
    }

    pub fn resize(&self, size_bytes: u64) {
        let mut contents = self.lock();
        contents.size_bytes = size_bytes;
        contents.clusters.retain(|cluster, _| cluster * CLUSTER < size_bytes);
    }

    pub fn put(&self, start: u64, bytes: &[u8]) {
        self.lock().put(start, bytes);
    }

    pub fn get(&self, start: u64, length: u64) -> Vec<u8> {
        self.lock().get(start, length)
    }
}

impl Contents {
    fn put(&mut self, start: u64, bytes: &[u8]) {
        for (at, byte) in (start..).zip(bytes) {
            let cluster =
                self.clusters.entry(at / CLUSTER).or_insert_with(|| Box::new([0; CLUSTER as usize]));
            cluster[(at % CLUSTER) as usize] = *byte;
        }
    }

    fn get(&self, start: u64, length: u64) -> Vec<u8> {
        let byte = |at: u64| {
            self.clusters.get(&(at / CLUSTER)).map_or(0, |cluster| cluster[(at % CLUSTER) as usize])
        };
        (start..start + length).map(byte).collect()
    }
}

impl Device for Disk {
    fn size(&self) -> ByteCount {
        ByteCount(self.lock().size_bytes.next_multiple_of(CLUSTER))
    }

    fn read_only(&self) -> bool {
        false
    }

    fn description(&self) -> String {
        String::new()
    }

    async fn read(&self, range: ByteRange) -> Result<ReadReply, NbdError> {
        let mut contents = self.lock();
        contents.read_bytes += range.length.0;
        Ok(Bytes::from(contents.get(range.start.0, range.length.0)).into())
    }

    async fn write(&self, offset: ByteOffset, data: Bytes, _: bool) -> Result<(), NbdError> {
        if self.lock().is_stalled {
            std::future::pending::<()>().await;
        }
        let mut contents = self.lock();
        contents.written_bytes += data.len() as u64;
        if contents.fails_after_bytes.is_some_and(|limit| contents.written_bytes > limit) {
            return Err(NbdError::NoSpace("the disk in memory is full".into()));
        }
        contents.put(offset.0, &data);
        Ok(())
    }

    async fn zero(&self, range: ByteRange, _: bool, _: ZeroKind) -> Result<(), NbdError> {
        let mut contents = self.lock();
        let covered = range.clusters_covered();
        contents.clusters.retain(|cluster, _| *cluster < covered.start.0 || *cluster >= covered.end().0);
        // The ragged ends, where something is there.
        for at in [range.start.0, range.end().0.saturating_sub(1)] {
            if contents.clusters.contains_key(&(at / CLUSTER)) {
                let start = range.start.0.max(at / CLUSTER * CLUSTER);
                let end = range.end().0.min((at / CLUSTER + 1) * CLUSTER);
                contents.put(start, &vec![0; (end - start) as usize]);
            }
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), NbdError> {
        self.lock().flushes += 1;
        Ok(())
    }

    async fn cache(&self, _: ByteRange) -> Result<(), NbdError> {
        Ok(())
    }

    async fn block_status(&self, range: ByteRange, limit: usize) -> Result<Vec<Extent>, NbdError> {
        let contents = self.lock();
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = range.start.0;
        while at < range.end().0 {
            let next = range.end().0.min((at / CLUSTER + 1) * CLUSTER);
            let is_hole = !contents.clusters.contains_key(&(at / CLUSTER));
            let is_full = extents.len() == limit;
            match extents.last_mut() {
                Some(last) if last.hole == is_hole => last.length.0 += next - at,
                _ if is_full => break,
                _ if is_hole => extents.push(Extent::hole(ByteCount(next - at))),
                _ => extents.push(Extent::data(ByteCount(next - at))),
            }
            at = next;
        }
        Ok(extents)
    }

    async fn closed(&self) {
        std::future::pending().await
    }
}

impl Exports for Disk {
    type Device = Disk;

    async fn open(&self, name: &str, client: ClientInfo) -> Result<Rc<Disk>, OpenError> {
        if client.session.is_none() {
            return Err(OpenError::Denied("without a session".into()));
        }
        self.lock().opened.push(name.to_owned());
        self.0.was_opened.notify_all();
        Ok(Rc::new(self.clone()))
    }

    async fn info(&self, _: &str) -> Result<ExportInfo, OpenError> {
        let description = String::new();
        Ok(ExportInfo { size: self.size(), read_only: false, multi_conn: true, description })
    }

    async fn list(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Serves the disk on these sockets until the process ends.
pub fn serve_disks(sockets: &[PathBuf], disk: Disk) {
    let listeners: Vec<std::os::unix::net::UnixListener> =
        sockets.iter().map(|socket| std::os::unix::net::UnixListener::bind(socket).unwrap()).collect();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let local = tokio::task::LocalSet::new();
        let server = runtime.block_on(async { Server::new(ServerOptions::default()) });
        for listener in listeners {
            listener.set_nonblocking(true).unwrap();
            let (server, exports) = (server.clone(), Rc::new(disk.clone()));
            local.spawn_local(async move {
                let listener = tokio::net::UnixListener::from_std(listener).unwrap();
                serve_unix(server, listener, exports, CancellationToken::new()).await;
            });
        }
        runtime.block_on(local);
    });
}
