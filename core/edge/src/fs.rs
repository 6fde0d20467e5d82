//! FUSE requests, as fuser hands them over, to calls of [`Volume`] and back.
//!
//! ```text
//!  FUSE thread: copy what the request needs, admit it (may wait: backpressure) ──▶ tokio task ──▶ Volume ──▶ reply
//! ```
//!
//! A FUSE thread does nothing that waits for ovsd. A reply that is dropped unanswered becomes EIO (fuser).

use crate::{
    attributes::Ownership,
    extent::{Allocation, Seek},
    file::generation,
    file_name::FILE_NAME_LENGTH_MAX,
    in_flight::{Admitted, Request as InFlightRequest},
    link::Access,
    volume::{NewAttributes, Volume},
};
use bytes::Bytes;
use fuser::{
    BsdFileFlags, Errno, FileHandle, FileType, Filesystem, FopenFlags, INodeNo, InitFlags, IoctlFlags,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use ovs_api::Vpool;
use std::{
    ffi::OsStr,
    future::Future,
    io,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::runtime::Handle;

/// The largest read or write: what every supported kernel allows (256 pages).
const REQUEST_BYTES_MAX: u32 = 1 << 20;

/// Asynchronous requests that the kernel keeps open per mount. A stalled vDisk holds as many as its loop device or VM
/// sends (128 or so); the others must still get through.
const BACKGROUND_REQUESTS_MAX: u16 = 1024;

/// For how long the kernel may believe a name or an attribute. Events invalidate sooner; this bounds what a lost event
/// can cost.
const TTL: Duration = Duration::from_secs(1);

/// `O_DSYNC`, which `O_SYNC` contains.
const O_DSYNC: i32 = 0o10000;
/// `O_EXCL`.
const O_EXCL: i32 = 0o200;

/// The file system of one mount.
#[derive(Debug)]
pub struct VpoolFs {
    volume: Arc<Volume>,
    runtime: Handle,
}

impl VpoolFs {
    /// For a volume; requests are worked on in `runtime`.
    pub fn new(volume: Arc<Volume>, runtime: Handle) -> VpoolFs {
        VpoolFs { volume, runtime }
    }

    /// Counts a request in, as long as the returned place lives.
    fn admit(&self, request: &Request, what: &'static str, inode: INodeNo, place: (u64, u64)) -> Admitted {
        let (offset, length) = place;
        let payload = match what {
            "read" | "write" => length as usize,
            _ => 0,
        };
        let request = InFlightRequest { what, inode: inode.0, offset, length, pid: request.pid() };
        self.volume.in_flight.admit(&self.runtime, request, payload)
    }

    /// Works on a request elsewhere; its place is given back after the reply.
    fn serve<F, W>(&self, admitted: Admitted, work: W)
    where
        W: FnOnce(Arc<Volume>) -> F,
        F: Future<Output = ()> + Send + 'static,
    {
        let work = work(Arc::clone(&self.volume));
        self.runtime.spawn(async move {
            work.await;
            drop(admitted);
        });
    }
}

impl Filesystem for VpoolFs {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Not writeback cache: the kernel would own size and times, and what changes elsewhere (rollback, resize by
        // RPC) would go stale. Its absence also keeps O_DIRECT users and readers coherent.
        let wanted = InitFlags::FUSE_ASYNC_DIO | InitFlags::FUSE_PARALLEL_DIROPS | InitFlags::FUSE_ASYNC_READ;
        for flag in wanted.iter() {
            if config.add_capabilities(flag).is_err() {
                tracing::info!(?flag, "the kernel lacks a FUSE capability");
            }
        }
        let _ = config.set_max_write(REQUEST_BYTES_MAX);
        let _ = config.set_max_background(BACKGROUND_REQUESTS_MAX);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let admitted = self.admit(request, "lookup", parent, (0, 0));
        let name = name.to_owned();
        self.serve(admitted, async move |volume| match volume.lookup(&name).await {
            Ok(file) => reply.entry(&TTL, &file.attributes(), generation(&file)),
            Err(errno) => reply.error(errno),
        });
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let admitted = self.admit(request, "getattr", ino, (0, 0));
        self.serve(admitted, async move |volume| match volume.attributes(ino.0).await {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(errno) => reply.error(errno),
        });
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let admitted = self.admit(request, "setattr", ino, (0, size.unwrap_or(0)));
        let new =
            NewAttributes { size, uid, gid, mode, accessed: atime.map(moment), modified: mtime.map(moment) };
        self.serve(admitted, async move |volume| match volume.change(ino.0, new).await {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(errno) => reply.error(errno),
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let admitted = self.admit(request, "create", parent, (0, 0));
        let owner = Ownership { uid: request.uid(), gid: request.gid(), mode: 0 }.changed(
            None,
            None,
            Some(mode & !umask),
        );
        let (name, access, is_exclusive) = (name.to_owned(), access(OpenFlags(flags)), flags & O_EXCL != 0);
        self.serve(admitted, async move |volume| {
            match volume.create(&name, owner, is_exclusive, access).await {
                Ok((file, handle)) => reply.created(
                    &TTL,
                    &file.attributes(),
                    generation(&file),
                    FileHandle(handle),
                    FopenFlags::empty(),
                ),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let admitted = self.admit(request, "open", ino, (0, 0));
        self.serve(admitted, async move |volume| match volume.open(ino.0, access(flags)).await {
            // Without FOPEN_KEEP_CACHE: a file opened anew is read anew, whoever wrote it meanwhile.
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(errno) => reply.error(errno),
        });
    }

    fn release(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let admitted = self.admit(request, "release", ino, (0, 0));
        self.serve(admitted, async move |volume| {
            volume.release(fh.0).await;
            reply.ok();
        });
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let admitted = self.admit(request, "read", ino, (offset, u64::from(size)));
        self.serve(admitted, async move |volume| match volume.read(fh.0, offset, size).await {
            Ok(data) => reply.data(&data),
            Err(errno) => reply.error(errno),
        });
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let admitted = self.admit(request, "write", ino, (offset, data.len() as u64));
        // The one copy: the buffer belongs to the FUSE thread and its next request.
        let data = Bytes::copy_from_slice(data);
        let is_sync = flags.0 & O_DSYNC != 0;
        self.serve(admitted, async move |volume| match volume.write(fh.0, offset, data, is_sync).await {
            Ok(length) => reply.written(length),
            Err(errno) => reply.error(errno),
        });
    }

    fn flush(&self, request: &Request, ino: INodeNo, fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        let admitted = self.admit(request, "close", ino, (0, 0));
        self.serve(admitted, async move |volume| answer(reply, volume.close(fh.0).await));
    }

    fn fsync(&self, request: &Request, ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let admitted = self.admit(request, "fsync", ino, (0, 0));
        self.serve(admitted, async move |volume| answer(reply, volume.fsync(fh.0).await));
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let Some(what) = Allocation::parse(mode) else { return reply.error(Errno::EOPNOTSUPP) };
        let admitted = self.admit(request, "fallocate", ino, (offset, length));
        self.serve(admitted, async move |volume| {
            answer(reply, volume.allocate(fh.0, offset, length, what).await);
        });
    }

    fn lseek(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let Some(what) = Seek::parse(whence) else { return reply.error(Errno::EINVAL) };
        let admitted = self.admit(request, "lseek", ino, (offset.max(0) as u64, 0));
        self.serve(admitted, async move |volume| match volume.seek(fh.0, offset, what).await {
            Ok(offset) => reply.offset(offset),
            Err(errno) => reply.error(errno),
        });
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        _newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let admitted = self.admit(request, "rename", parent, (0, 0));
        let (name, newname) = (name.to_owned(), newname.to_owned());
        self.serve(admitted, async move |volume| answer(reply, volume.rename(&name, &newname, flags).await));
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let admitted = self.admit(request, "unlink", parent, (0, 0));
        let name = name.to_owned();
        self.serve(admitted, async move |volume| answer(reply, volume.unlink(&name).await));
    }

    fn opendir(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(self.volume.open_directory()), FopenFlags::empty());
    }

    fn readdir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let entries = match self.volume.entries(fh.0) {
            Ok(entries) => entries,
            Err(errno) => return reply.error(errno),
        };
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, entry) in entries.iter().enumerate().skip(from) {
            let kind = if entry.is_directory { FileType::Directory } else { FileType::RegularFile };
            if reply.add(INodeNo(entry.inode), index as u64 + 1, kind, &entry.name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.volume.release_directory(fh.0);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        // Names are durable when create, rename and unlink return.
        reply.ok();
    }

    fn statfs(&self, request: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let admitted = self.admit(request, "statfs", ino, (0, 0));
        self.serve(admitted, async move |volume| match volume.space().await {
            Ok(vpool) => answer_space(reply, &vpool),
            Err(errno) => reply.error(errno),
        });
    }

    // Everything else belongs to the File Driver, which is not there yet, or does not exist here.

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EOPNOTSUPP);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EOPNOTSUPP);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::ENOTDIR);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(Errno::EOPNOTSUPP);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EOPNOTSUPP);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    // ENOSYS: the kernel does not ask again, and tells programs EOPNOTSUPP.

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: fuser::CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::ENOSYS);
    }
}

fn answer(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

/// statfs(2) in blocks of 4 KiB. A backend without a notion of space says so by a very large number.
fn answer_space(reply: ReplyStatfs, vpool: &Vpool) {
    const BLOCK_BYTES: u32 = 4096;
    const FILES_FREE: u64 = 1 << 20;
    const UNKNOWN_FREE_BYTES: u64 = 1 << 50;
    let free_bytes = vpool.free_bytes.unwrap_or(UNKNOWN_FREE_BYTES);
    let total_bytes = vpool.total_bytes.unwrap_or_else(|| vpool.used_bytes.saturating_add(free_bytes));
    let blocks = |bytes: u64| bytes / u64::from(BLOCK_BYTES);
    reply.statfs(
        blocks(total_bytes),
        blocks(free_bytes),
        blocks(free_bytes),
        vpool.vdisk_count.saturating_add(FILES_FREE),
        FILES_FREE,
        BLOCK_BYTES,
        FILE_NAME_LENGTH_MAX,
        BLOCK_BYTES,
    );
}

fn access(flags: OpenFlags) -> Access {
    match flags.acc_mode() {
        OpenAccMode::O_RDONLY => Access::Read,
        OpenAccMode::O_WRONLY | OpenAccMode::O_RDWR => Access::Write,
    }
}

fn moment(time: TimeOrNow) -> SystemTime {
    match time {
        TimeOrNow::SpecificTime(time) => time,
        TimeOrNow::Now => crate::clock::now(),
    }
}
