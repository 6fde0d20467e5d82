//! The places of a leaf in as few bytes as they take, for a page that is read and not changed.

use super::tree::Place;
use ovs_format::page::FANOUT;

/// Bits of a run's word that its place takes; the rest say where it begins.
const RUN_PLACE_BITS: u32 = 55;
/// Bits of an entry at most: it is read with one load of 64, from any bit of a byte on.
const ENTRY_BITS_MAX: u32 = 57;

/// 512 places, packed.
#[derive(Clone)]
pub(super) enum Packed {
    /// All of it follows its first place.
    Run(u64),
    /// What follows each other, in order of where it begins: its first index and its first place.
    Runs(Box<[u64]>),
    /// Each by itself, in as many bits as the largest needs.
    Entries(Box<Entries>),
}

#[derive(Clone)]
pub(super) struct Entries {
    first_sco: u64,
    offset_bits: u32,
    bits: u32,
    /// And eight bytes that nobody uses.
    bytes: Box<[u8]>,
}

impl Packed {
    /// `None` when that would not be smaller.
    pub(super) fn new(places: &[u64; FANOUT]) -> Option<Packed> {
        // Twice through them, and no list: whoever loads pages that lie nowhere together does this for each.
        let (run_count, highest) =
            runs(places).fold((0, 0), |(count, highest), (_, place)| (count + 1, place.max(highest)));
        if run_count == 1 {
            return Some(Packed::Run(places[0]));
        }
        let entries = Entries::layout(places);
        let entries_bytes = entries.map_or(usize::MAX, |(.., bits)| bytes_of(bits));
        let runs_bytes =
            if highest < 1 << RUN_PLACE_BITS { run_count * size_of::<u64>() } else { usize::MAX };
        if runs_bytes.min(entries_bytes) >= size_of_val(places) {
            return None;
        }
        if runs_bytes <= entries_bytes {
            let words = runs(places).map(|(index, place)| (index as u64) << RUN_PLACE_BITS | place);
            return Some(Packed::Runs(words.collect()));
        }
        entries.map(|layout| Packed::Entries(Box::new(Entries::new(places, layout))))
    }

    /// The place at an index (0: nowhere), and for how many more, `count_max` at most, the next ones follow it.
    pub(super) fn find(&self, index: usize, count_max: usize) -> (u64, usize) {
        match self {
            Packed::Run(place) => {
                let step = if *place == 0 { 0 } else { index };
                (place + step as u64, count_max.min(FANOUT - index))
            }
            Packed::Runs(words) => {
                let begins = |word: u64| (word >> RUN_PLACE_BITS) as usize;
                let behind = words.partition_point(|word| begins(*word) <= index);
                let word = words[behind - 1];
                let end = words.get(behind).map_or(FANOUT, |word| begins(*word));
                let place = word & ((1 << RUN_PLACE_BITS) - 1);
                let step = if place == 0 { 0 } else { index - begins(word) };
                (place + step as u64, count_max.min(end - index))
            }
            Packed::Entries(entries) => {
                let first = entries.get(index);
                let step = u64::from(first != 0);
                let follows = |count: &usize| entries.get(index + count) == first + step * *count as u64;
                (first, (1..count_max).take_while(follows).count() + 1)
            }
        }
    }

    pub(super) fn places(&self) -> Box<[u64; FANOUT]> {
        let mut places = Box::new([0; FANOUT]);
        let mut index = 0;
        while index < FANOUT {
            let (first, count) = self.find(index, FANOUT - index);
            let step = u64::from(first != 0);
            for (number, place) in places[index..index + count].iter_mut().enumerate() {
                *place = first + step * number as u64;
            }
            index += count;
        }
        places
    }

    /// Of the memory behind it.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Packed::Run(_) => 0,
            Packed::Runs(words) => size_of_val(&**words),
            Packed::Entries(entries) => size_of::<Entries>() + entries.bytes.len(),
        }
    }
}

/// As long as possible; the first begins at 0.
fn runs(places: &[u64; FANOUT]) -> impl Iterator<Item = (usize, u64)> {
    let follows = |index: usize| {
        let before = places[index - 1];
        places[index] == before + u64::from(before != 0)
    };
    (0..FANOUT).filter(move |index| *index == 0 || !follows(*index)).map(|index| (index, places[index]))
}

fn bytes_of(bits: u32) -> usize {
    (FANOUT * bits as usize).div_ceil(8) + size_of::<u64>()
}

fn bits_for(largest: u64) -> u32 {
    u64::BITS - largest.leading_zeros()
}

impl Entries {
    /// First SCO, bits of an offset, bits of an entry.
    fn layout(places: &[u64; FANOUT]) -> Option<(u64, u32, u32)> {
        let (mut first_sco, mut last_sco, mut offsets) = (u64::MAX, 0, 0);
        for place in places.iter().filter_map(|place| Place::unpack(*place)) {
            first_sco = first_sco.min(place.sco);
            last_sco = last_sco.max(place.sco);
            offsets |= u64::from(place.offset);
        }
        if first_sco == u64::MAX {
            return None;
        }
        let offset_bits = bits_for(offsets);
        // 0 is nowhere.
        let bits = bits_for(last_sco - first_sco + 1) + offset_bits;
        (bits <= ENTRY_BITS_MAX).then_some((first_sco, offset_bits, bits))
    }

    fn new(places: &[u64; FANOUT], (first_sco, offset_bits, bits): (u64, u32, u32)) -> Entries {
        let mut entries =
            Entries { first_sco, offset_bits, bits, bytes: vec![0; bytes_of(bits)].into_boxed_slice() };
        for (index, place) in places.iter().enumerate() {
            let value = Place::unpack(*place)
                .map_or(0, |place| (place.sco - first_sco + 1) << offset_bits | u64::from(place.offset));
            let (byte, shift) = entries.at(index);
            let word = entries.word(byte) | value << shift;
            entries.bytes[byte..byte + 8].copy_from_slice(&word.to_le_bytes());
        }
        entries
    }

    fn at(&self, index: usize) -> (usize, u32) {
        let bit = index * self.bits as usize;
        (bit / 8, (bit % 8) as u32)
    }

    fn word(&self, byte: usize) -> u64 {
        let mut word = [0; 8];
        word.copy_from_slice(&self.bytes[byte..byte + 8]);
        u64::from_le_bytes(word)
    }

    fn get(&self, index: usize) -> u64 {
        let (byte, shift) = self.at(index);
        let value = self.word(byte) >> shift & ((1 << self.bits) - 1);
        match value >> self.offset_bits {
            0 => 0,
            sco => {
                let offset = (value & ((1 << self.offset_bits) - 1)) as u32;
                Place { sco: self.first_sco + sco - 1, offset }.pack()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(places: &[u64; FANOUT]) -> Option<usize> {
        let packed = Packed::new(places)?;
        assert!(*packed.places() == *places);
        for index in 0..FANOUT {
            let (first, count) = packed.find(index, FANOUT - index);
            assert_eq!(first, places[index]);
            let step = u64::from(first != 0);
            let expected = (0..FANOUT - index)
                .take_while(|number| places[index + number] == first + step * *number as u64)
                .count();
            assert_eq!(count, expected, "from {index} on");
            assert_eq!(packed.find(index, 1), (first, 1));
        }
        Some(packed.bytes())
    }

    #[test]
    fn what_lies_together_takes_a_word() {
        let mut places = [0; FANOUT];
        assert_eq!(check(&places), Some(0));
        for (index, place) in places.iter_mut().enumerate() {
            *place = Place { sco: 1 << 30, offset: index as u32 }.pack();
        }
        assert_eq!(check(&places), Some(0));
        places[100] = 0;
        assert_eq!(check(&places), Some(24));
        places[FANOUT - 1] = 0;
        assert_eq!(check(&places), Some(32));
    }

    #[test]
    fn what_cannot_be_packed_is_told() {
        let mut places = [0; FANOUT];
        for (index, place) in places.iter_mut().enumerate() {
            let sco = if index % 2 == 0 { (1 << 47) - 2 } else { 0 };
            *place = Place { sco, offset: 0xffff }.pack();
        }
        assert_eq!(check(&places), None);
    }

    proptest! {
        /// As many SCOs, and as many clusters of each, as there may be.
        #[test]
        fn packed_places_are_what_they_were(
            entries in prop::collection::vec((0usize..FANOUT, 0u64..1 << 47, 0u32..1 << 16, 1usize..40), 0..300),
            sco_bits in 0u32..47,
            offset_bits in 0u32..16,
            first in 0u64..1 << 40,
        ) {
            let mut places = [0; FANOUT];
            for (index, sco, offset, count) in entries {
                let place = Place { sco: first + (sco & ((1 << sco_bits) - 1)), offset: offset & ((1 << offset_bits) - 1) };
                for (number, slot) in places[index..].iter_mut().take(count).enumerate() {
                    let place = Place { offset: (place.offset + number as u32).min(0xffff), ..place };
                    *slot = if sco % 5 == 0 { 0 } else { place.pack() };
                }
            }
            check(&places);
        }

        /// 28 bits are 28 bits, and a few for the whole.
        #[test]
        fn of_random_places_none_takes_more_bits_than_it_must(seed in any::<u64>()) {
            let mut random = seed | 1;
            let mut places = [0; FANOUT];
            for place in &mut places {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                *place = Place { sco: random >> 46, offset: (random >> 8) as u32 & 1023 }.pack();
            }
            prop_assert!(check(&places).unwrap() <= FANOUT * 29 / 8 + 64);
        }
    }
}
