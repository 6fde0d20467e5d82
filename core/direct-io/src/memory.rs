//! The memory of buffers. A large one is in huge pages where the kernel has them: it is made in a few steps instead of thousands, and to a
//! device it is a few long pieces, in as many requests.

use crate::BLOCK_BYTES;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use std::{
    alloc::{Layout, handle_alloc_error},
    ops::{Deref, DerefMut},
    ptr::{self, NonNull},
    slice,
};

/// A huge page of most processors. It begins at a multiple of itself.
const HUGE_BYTES: usize = 2 << 20;

/// So many bytes that begin at a whole block, zero at first.
#[derive(Debug)]
pub(crate) enum Memory {
    Small { bytes: Vec<u8>, start: usize, length: usize },
    Large(Mapping),
}

impl Memory {
    pub(crate) fn of(length: usize) -> Memory {
        if length >= HUGE_BYTES {
            return Memory::Large(Mapping::new(length));
        }
        let bytes = vec![0; if length == 0 { 0 } else { length + BLOCK_BYTES }];
        let start = if length == 0 { 0 } else { bytes.as_ptr().align_offset(BLOCK_BYTES) };
        Memory::Small { bytes, start, length }
    }
}

impl Default for Memory {
    fn default() -> Memory {
        Memory::of(0)
    }
}

impl Deref for Memory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Memory::Small { bytes, start, length } => &bytes[*start..*start + *length],
            Memory::Large(mapping) => mapping,
        }
    }
}

impl DerefMut for Memory {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Memory::Small { bytes, start, length } => &mut bytes[*start..*start + *length],
            Memory::Large(mapping) => mapping,
        }
    }
}

/// Anonymous memory of its own, from a huge page's beginning on.
#[derive(Debug)]
pub(crate) struct Mapping {
    mapped: NonNull<u8>,
    mapped_bytes: usize,
    start: usize,
    length: usize,
}

// SAFETY: nobody else knows where it is.
unsafe impl Send for Mapping {}
// SAFETY: who has it shared only reads from it.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(length: usize) -> Mapping {
        // What is before the first huge page, and is never used, costs addresses alone.
        let mapped_bytes = length + HUGE_BYTES;
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: the kernel chooses where, and nothing else is there.
        let mapped = unsafe { mmap_anonymous(ptr::null_mut(), mapped_bytes, access, flags) };
        let mapped = mapped.ok().and_then(|mapped| NonNull::new(mapped.cast::<u8>()));
        let Some(mapped) = mapped else {
            handle_alloc_error(Layout::from_size_align(length, BLOCK_BYTES).unwrap_or(Layout::new::<u8>()))
        };
        let start = mapped.as_ptr().align_offset(HUGE_BYTES).min(HUGE_BYTES);
        let mapping = Mapping { mapped, mapped_bytes, start, length };
        // SAFETY: within what was mapped just now; what is in it stays as it is. A kernel without huge pages refuses, and that is all.
        let _advised = unsafe { madvise(mapping.first().cast(), length, Advice::LinuxHugepage) };
        mapping
    }

    fn first(&self) -> *mut u8 {
        // SAFETY: `start` is at most HUGE_BYTES, and so much more than `length` is mapped.
        unsafe { self.mapped.as_ptr().add(self.start) }
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: mapped and readable until it is dropped, zero where nobody wrote.
        unsafe { slice::from_raw_parts(self.first(), self.length) }
    }
}

impl DerefMut for Mapping {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and who may change it has it alone.
        unsafe { slice::from_raw_parts_mut(self.first(), self.length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it is ours, all of it, and nobody has any of it any more.
        let _unmapped = unsafe { munmap(self.mapped.as_ptr().cast(), self.mapped_bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_begins_at_a_block_and_is_as_long_as_it_was_asked_to_be() {
        for length in
            [0, 1, 100, BLOCK_BYTES, BLOCK_BYTES + 1, HUGE_BYTES - 1, HUGE_BYTES, 3 * HUGE_BYTES + 5]
        {
            let mut memory = Memory::of(length);
            assert_eq!(memory.len(), length);
            assert!(length == 0 || (memory.as_ptr() as usize).is_multiple_of(BLOCK_BYTES), "{length}");
            assert!(memory.iter().all(|byte| *byte == 0));
            memory.fill(7);
            assert!(memory.iter().all(|byte| *byte == 7));
        }
        assert!((Memory::of(HUGE_BYTES).as_ptr() as usize).is_multiple_of(HUGE_BYTES));
    }

    #[test]
    fn large_memory_is_given_back() {
        let mapped_bytes = || {
            let status = std::fs::read_to_string("/proc/self/statm").unwrap();
            status.split(' ').next().unwrap().parse::<usize>().unwrap() * rustix::param::page_size()
        };
        let before = mapped_bytes();
        let large = Memory::of(4 << 30);
        // Other cases of this process have less.
        assert!(mapped_bytes() >= before + (3 << 30));
        drop(large);
        assert!(mapped_bytes() < before + (1 << 30));
    }
}
