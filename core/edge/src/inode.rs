//! Inode numbers from UUIDs.
//!
//! A vDisk's inode is the same on every host and after every restart, since it is made from the vDisk's UUID alone.
//! 128 bits do not fit 64: the other half goes into the generation, and should two vDisks of one vPool ever meet on
//! one number, the later one takes the next free number (and may then differ between mounts).

use ovs_units::VdiskId;

/// The root directory's inode, as the FUSE protocol fixes it.
pub const ROOT: u64 = 1;

/// The inode number that a vDisk has unless another one is there first; 63 bits, never 0 or the root's.
pub fn preferred(id: VdiskId) -> u64 {
    let (high, low) = id.0.as_u64_pair();
    usable(high.rotate_left(17) ^ low)
}

/// The generation beside the number: together they are never given to another vDisk.
pub fn generation(id: VdiskId) -> u64 {
    id.0.as_u64_pair().0
}

/// The number for a vDisk, given which numbers others hold.
pub fn assign(id: VdiskId, is_taken: impl Fn(u64) -> bool) -> u64 {
    let mut number = preferred(id);
    while is_taken(number) {
        number = usable(number + 1);
    }
    number
}

/// Programs that keep inodes as signed numbers exist, so the top bit stays clear.
fn usable(number: u64) -> u64 {
    match number & (u64::MAX >> 1) {
        number if number <= ROOT => ROOT + 1,
        number => number,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn id(number: u128) -> VdiskId {
        VdiskId(Uuid::from_u128(number))
    }

    #[test]
    fn numbers_are_stable_and_never_the_roots() {
        let some = id(0x0192_7b6e_1c00_7000_8000_0000_0000_0001);
        assert_eq!(preferred(some), preferred(some));
        for number in [0, 1, 2, u128::MAX, 1 << 127, 1 << 63, 1 << 64] {
            let inode = preferred(id(number));
            assert!(inode > ROOT && inode < 1 << 63, "{number:#x} gave {inode:#x}");
        }
    }

    #[test]
    fn vdisks_made_in_one_millisecond_differ() {
        // Version 7: the same time in front, chance behind.
        let base = 0x0192_7b6e_1c00_7000_8000_0000_0000_0000u128;
        let numbers: std::collections::HashSet<u64> = (0..10_000).map(|n| preferred(id(base + n))).collect();
        assert_eq!(numbers.len(), 10_000);
    }

    #[test]
    fn a_taken_number_is_passed_over() {
        let some = id(77 << 64 | 5);
        let first = preferred(some);
        assert_eq!(assign(some, |_| false), first);
        assert_eq!(assign(some, |number| number == first), first + 1);
        assert_eq!(usable(u64::MAX >> 1), u64::MAX >> 1);
        assert_eq!(usable((u64::MAX >> 1) + 1), ROOT + 1, "the last number is followed by the first");
    }
}
