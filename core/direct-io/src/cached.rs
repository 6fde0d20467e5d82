//! What the page cache has, asked without reading.

use rustix::{io::Errno, param::page_size};
use std::{fs::File, io, os::fd::AsRawFd};

/// `__NR_cachestat` of Linux 6.5 (`include/uapi/asm-generic/unistd.h`; alpha alone has another number, and is not ours).
const CACHESTAT: libc::c_long = 451;

/// `struct cachestat_range` of `include/uapi/linux/mman.h`, bytes.
#[repr(C)]
struct Range {
    offset: u64,
    length: u64,
}

/// `struct cachestat`, pages.
#[repr(C)]
#[derive(Default)]
struct Found {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Whether the page cache has all of these bytes, or has begun to read them. Waits for nothing, and reads nothing. An error where the kernel cannot
/// tell, or not of this file.
pub fn is_cached(file: &File, offset: u64, length: u64) -> io::Result<bool> {
    if length == 0 {
        return Ok(true);
    }
    let (range, mut found) = (Range { offset, length }, Found::default());
    // SAFETY: both live until it returns, and are laid out as it wants them.
    let answer = unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), &raw const range, &raw mut found, 0) };
    if answer != 0 {
        return Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::NOSYS).into());
    }
    let page = page_size() as u64;
    let last = offset.saturating_add(length - 1);
    Ok(found.cached > last / page - offset / page)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn what_was_read_is_there_and_what_was_let_go_is_not() {
        let (page, file) = (page_size() as u64, tempfile::tempfile().unwrap());
        file.write_all_at(&vec![7; 8 * page as usize], 0).unwrap();
        if let Err(error) = is_cached(&file, 0, 1) {
            return eprintln!("not tried, the kernel cannot tell: {error}");
        }
        assert!(is_cached(&file, 0, 8 * page).unwrap());
        assert!(!is_cached(&file, 7 * page, page + 1).unwrap(), "it ends before");
        file.sync_all().unwrap();
        let (start, length) = (2 * page, std::num::NonZeroU64::new(4 * page));
        rustix::fs::fadvise(&file, start, length, rustix::fs::Advice::DontNeed).unwrap();
        if is_cached(&file, 3 * page, 1).unwrap() {
            return eprintln!("not tried, this file system has its files in memory");
        }
        for (offset, length, expected) in [
            (0, 2 * page, true),
            (0, 2 * page + 1, false),
            (6 * page, 2 * page, true),
            (6 * page - 1, 2, false),
            (5 * page, 0, true),
            (8 * page - 1, 1, true),
            (1 << 50, 1, false),
            (u64::MAX, u64::MAX, false),
        ] {
            assert_eq!(is_cached(&file, offset, length).unwrap_or(false), expected, "{length} from {offset}");
        }
    }
}
