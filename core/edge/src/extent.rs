//! The arithmetic of a file of any size on top of a vDisk: what of a read exists, what a write makes longer, which
//! bytes an fallocate(2) means, where the next data or hole is.

use ovs_units::{ByteCount, ByteOffset, ByteRange, VDISK_SIZE_BYTES_MAX};

/// `FALLOC_FL_KEEP_SIZE`, fallocate(2).
const KEEP_SIZE: i32 = 0x01;
/// `FALLOC_FL_PUNCH_HOLE`.
const PUNCH_HOLE: i32 = 0x02;
/// `FALLOC_FL_ZERO_RANGE`.
const ZERO_RANGE: i32 = 0x10;

/// The part of a read that lies within the file; `None` at or past its end.
pub fn readable(wanted: ByteRange, size: ByteCount) -> Option<ByteRange> {
    let length = size.0.checked_sub(wanted.start.0)?.min(wanted.length.0);
    match length {
        0 => None,
        length => ByteRange::new(wanted.start, ByteCount(length)),
    }
}

/// The range that a request names; `None` when no vDisk could hold it (EFBIG).
pub fn range_within_limits(offset: u64, length: u64) -> Option<ByteRange> {
    let range = ByteRange::new(ByteOffset(offset), ByteCount(length))?;
    range.is_within(ByteCount(VDISK_SIZE_BYTES_MAX)).then_some(range)
}

/// The size that the file must have before `range` can be written; `None` when it is long enough.
pub fn size_needed(range: ByteRange, size: ByteCount) -> Option<ByteCount> {
    let end = ByteCount(range.end().0);
    (end > size).then_some(end)
}

/// What an fallocate(2) asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocation {
    /// Room is promised, nothing is written: a vDisk is thin, so this only grows the file.
    Reserve {
        /// Whether the file becomes longer if the range passes its end.
        grows: bool,
    },
    /// The range reads as zeros afterwards and takes no room.
    Punch,
    /// The range reads as zeros afterwards.
    Zero {
        /// As for `Reserve`.
        grows: bool,
    },
}

impl Allocation {
    /// `None` for the modes that are not offered (EOPNOTSUPP): collapse, insert, unshare.
    pub fn parse(mode: i32) -> Option<Allocation> {
        let grows = mode & KEEP_SIZE == 0;
        match mode & !KEEP_SIZE {
            0 => Some(Allocation::Reserve { grows }),
            // The kernel refuses PUNCH_HOLE without KEEP_SIZE before it reaches us; so do we.
            PUNCH_HOLE if !grows => Some(Allocation::Punch),
            ZERO_RANGE => Some(Allocation::Zero { grows }),
            _ => None,
        }
    }
}

/// What lseek(2) looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    /// The next byte that is not in a hole.
    Data,
    /// The next hole; the end of the file counts as one.
    Hole,
}

impl Seek {
    /// `SEEK_DATA` is 3 and `SEEK_HOLE` 4; the kernel does the others itself.
    pub fn parse(whence: i32) -> Option<Seek> {
        match whence {
            3 => Some(Seek::Data),
            4 => Some(Seek::Hole),
            _ => None,
        }
    }
}

/// The first match in extents (length, is a hole) that begin at `start` and follow each other; `None` if they end
/// without one.
pub fn seek_in(
    what: Seek,
    start: ByteOffset,
    extents: impl IntoIterator<Item = (ByteCount, bool)>,
) -> Option<ByteOffset> {
    let mut at = start.0;
    for (length, is_hole) in extents {
        if length.0 > 0 && is_hole == (what == Seek::Hole) {
            return Some(ByteOffset(at));
        }
        at = at.checked_add(length.0)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, length: u64) -> ByteRange {
        ByteRange::new(ByteOffset(start), ByteCount(length)).unwrap()
    }

    #[test]
    fn reads_stop_at_the_ragged_end() {
        let check = |start, length, size, expected: Option<u64>| {
            let got = readable(range(start, length), ByteCount(size));
            assert_eq!(got.map(|r| r.length.0), expected, "{start}+{length} of {size}");
            assert!(got.is_none_or(|r| r.start.0 == start));
        };
        check(0, 4096, 10_000, Some(4096));
        check(8192, 4096, 10_000, Some(1808));
        check(9_999, 1, 10_000, Some(1));
        check(10_000, 1, 10_000, None);
        check(20_000, 1, 10_000, None);
        check(0, 0, 10_000, None);
        check(0, 4096, 0, None);
    }

    #[test]
    fn writes_say_how_long_the_file_must_be() {
        assert_eq!(size_needed(range(0, 100), ByteCount(100)), None);
        assert_eq!(size_needed(range(1, 100), ByteCount(100)), Some(ByteCount(101)));
        assert_eq!(size_needed(range(1 << 40, 0), ByteCount(5)), Some(ByteCount(1 << 40)));
    }

    #[test]
    fn nothing_lies_past_the_largest_vdisk() {
        assert!(range_within_limits(VDISK_SIZE_BYTES_MAX - 1, 1).is_some());
        assert!(range_within_limits(VDISK_SIZE_BYTES_MAX, 1).is_none());
        assert!(range_within_limits(u64::MAX, 1).is_none());
    }

    #[test]
    fn fallocate_modes() {
        assert_eq!(Allocation::parse(0), Some(Allocation::Reserve { grows: true }));
        assert_eq!(Allocation::parse(1), Some(Allocation::Reserve { grows: false }));
        assert_eq!(Allocation::parse(3), Some(Allocation::Punch));
        assert_eq!(Allocation::parse(0x10), Some(Allocation::Zero { grows: true }));
        assert_eq!(Allocation::parse(0x11), Some(Allocation::Zero { grows: false }));
        for refused in [2, 8, 0x12, 0x13, 0x20, 0x40, -1, i32::MIN] {
            assert_eq!(Allocation::parse(refused), None, "{refused:#x}");
        }
    }

    #[test]
    fn seeking_passes_what_does_not_match() {
        let extents =
            || [(10, true), (0, false), (5, false), (5, true)].map(|(n, hole)| (ByteCount(n), hole));
        assert_eq!(seek_in(Seek::Hole, ByteOffset(100), extents()), Some(ByteOffset(100)));
        assert_eq!(seek_in(Seek::Data, ByteOffset(100), extents()), Some(ByteOffset(110)));
        assert_eq!(seek_in(Seek::Data, ByteOffset(100), [(ByteCount(9), true)]), None);
        assert_eq!(Seek::parse(3), Some(Seek::Data));
        assert_eq!(Seek::parse(0), None);
    }
}
