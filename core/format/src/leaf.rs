//! The places of a leaf in as few bytes as they take, in memory as on disk.

use crate::FormatError;
use crate::cursor::{Reader, Writer};
use crate::page::FANOUT;

/// A place is an SCO's index in the table, plus one, and 16 bits of the cluster in it; 0 is nowhere. None is larger than this, so that
/// what follows one in a page is one.
pub const PLACE_MAX: u64 = (1 << 63) - 1;
/// Bits of a place that say which cluster of the SCO.
const OFFSET_BITS: u32 = 16;
/// Bits of a run's word that its place takes; the rest say where it begins.
const RUN_PLACE_BITS: u32 = 55;
/// Bits of an entry at most: it is read with one load of 64, from any bit of a byte on.
const ENTRY_BITS_MAX: u32 = 57;

/// 512 places, packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed(Form);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Form {
    /// All of it follows its first place.
    Run(u64),
    /// What follows each other, in order of where it begins: its first index and its first place.
    Runs(Box<[u64]>),
    /// Each by itself, in as many bits as the largest needs.
    Entries(Box<Entries>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entries {
    /// The lowest SCO, as it is in a place.
    first: u64,
    offset_bits: u32,
    bits: u32,
    /// And eight bytes that nobody uses.
    bytes: Box<[u8]>,
}

impl Packed {
    /// `None` when that would not be smaller.
    pub fn new(places: &[u64; FANOUT]) -> Option<Packed> {
        // Twice through them, and no list: whoever loads pages that lie nowhere together does this for each.
        let (run_count, highest) =
            runs(places).fold((0, 0), |(count, highest), (_, place)| (count + 1, place.max(highest)));
        if run_count == 1 {
            return Some(Packed(Form::Run(places[0])));
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
            return Some(Packed(Form::Runs(words.collect())));
        }
        entries.map(|layout| Packed(Form::Entries(Box::new(Entries::new(places, layout)))))
    }

    /// The place at an index (0: nowhere), and for how many more, `count_max` at most, the next ones follow it.
    pub fn find(&self, index: usize, count_max: usize) -> (u64, usize) {
        match &self.0 {
            Form::Run(place) => {
                let step = if *place == 0 { 0 } else { index };
                (place + step as u64, count_max.min(FANOUT - index))
            }
            Form::Runs(words) => {
                let behind = words.partition_point(|word| begin_of(*word) <= index);
                let word = words[behind - 1];
                let end = words.get(behind).map_or(FANOUT, |word| begin_of(*word));
                let place = word & ((1 << RUN_PLACE_BITS) - 1);
                let step = if place == 0 { 0 } else { index - begin_of(word) };
                (place + step as u64, count_max.min(end - index))
            }
            Form::Entries(entries) => {
                let first = entries.get(index);
                let step = u64::from(first != 0);
                let follows = |count: &usize| entries.get(index + count) == first + step * *count as u64;
                (first, (1..count_max).take_while(follows).count() + 1)
            }
        }
    }

    /// Them all.
    pub fn places(&self) -> Box<[u64; FANOUT]> {
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
    pub fn bytes(&self) -> usize {
        match &self.0 {
            Form::Run(_) => 0,
            Form::Runs(words) => size_of_val(&**words),
            Form::Entries(entries) => size_of::<Entries>() + entries.bytes.len(),
        }
    }

    /// The first place, if all the others follow it.
    pub fn run(&self) -> Option<u64> {
        if let Form::Run(first) = self.0 { Some(first) } else { None }
    }

    /// All of it follows this place.
    pub fn of_run(first: u64) -> Packed {
        Packed(Form::Run(first))
    }

    pub(crate) fn write(&self, w: &mut Writer) {
        match &self.0 {
            Form::Run(first) => {
                w.u8(0);
                w.u64(*first);
            }
            Form::Runs(words) => {
                w.u8(1);
                w.u16(words.len() as u16);
                words.iter().for_each(|word| w.u64(*word));
            }
            Form::Entries(entries) => {
                w.u8(2);
                w.u8(entries.offset_bits as u8);
                w.u8(entries.bits as u8);
                w.u64(entries.first);
                w.0.extend_from_slice(&entries.bytes[..entries.bytes.len() - SPARE_BYTES]);
            }
        }
    }

    pub(crate) fn read(r: &mut Reader<'_>) -> Result<Packed, FormatError> {
        let form = match r.u8()? {
            0 => match read_place(r)? {
                first if first > PLACE_MAX - (FANOUT as u64 - 1) => return Err(r.field("first place", first)),
                first => Form::Run(first),
            },
            1 => {
                let count = usize::from(r.u16()?);
                if count == 0 || count > FANOUT {
                    return Err(r.field("runs", count as u64));
                }
                let (words, _) = r.take(count * size_of::<u64>())?.as_chunks();
                let words: Box<[u64]> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
                let is_ordered = words.is_sorted_by(|one, next| begin_of(*one) < begin_of(*next));
                if begin_of(words[0]) != 0 || !is_ordered {
                    return Err(r.field("beginnings of runs", words[0]));
                }
                Form::Runs(words)
            }
            2 => {
                let (offset_bits, bits) = (u32::from(r.u8()?), u32::from(r.u8()?));
                if bits > ENTRY_BITS_MAX || bits <= offset_bits || offset_bits > OFFSET_BITS {
                    return Err(r.field("bits of a place", u64::from(bits)));
                }
                let first = r.u64()?;
                if first == 0 || first > PLACE_MAX >> OFFSET_BITS {
                    return Err(r.field("first SCO", first));
                }
                let used = r.take(bytes_of(bits) - SPARE_BYTES)?;
                let bytes = [used, &[0; SPARE_BYTES]].concat().into_boxed_slice();
                Form::Entries(Box::new(Entries { first, offset_bits, bits, bytes }))
            }
            other => return Err(r.field("form of a leaf", u64::from(other))),
        };
        Ok(Packed(form))
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

/// The index at which a run's word says that it begins.
fn begin_of(word: u64) -> usize {
    (word >> RUN_PLACE_BITS) as usize
}

/// Behind the entries in memory, so that the last one is read like the others.
const SPARE_BYTES: usize = size_of::<u64>();

fn bytes_of(bits: u32) -> usize {
    (FANOUT * bits as usize).div_ceil(8) + SPARE_BYTES
}

/// A place that is no larger than one may be.
pub(crate) fn read_place(r: &mut Reader<'_>) -> Result<u64, FormatError> {
    let place = r.u64()?;
    if place <= PLACE_MAX { Ok(place) } else { Err(r.field("place", place)) }
}

fn bits_for(largest: u64) -> u32 {
    u64::BITS - largest.leading_zeros()
}

impl Entries {
    /// First SCO, bits of an offset, bits of an entry; `None` where there is no place, or what is not one.
    fn layout(places: &[u64; FANOUT]) -> Option<(u64, u32, u32)> {
        let (mut first, mut last, mut offsets) = (u64::MAX, 0, 0);
        for place in places.iter().filter(|place| **place != 0) {
            first = first.min(place >> OFFSET_BITS);
            last = last.max(place >> OFFSET_BITS);
            offsets |= place & ((1 << OFFSET_BITS) - 1);
        }
        if last == 0 || first == 0 {
            return None;
        }
        let offset_bits = bits_for(offsets);
        // 0 is nowhere.
        let bits = bits_for(last - first + 1) + offset_bits;
        (bits <= ENTRY_BITS_MAX).then_some((first, offset_bits, bits))
    }

    fn new(places: &[u64; FANOUT], (first, offset_bits, bits): (u64, u32, u32)) -> Entries {
        let mut entries =
            Entries { first, offset_bits, bits, bytes: vec![0; bytes_of(bits)].into_boxed_slice() };
        for (index, place) in places.iter().enumerate().filter(|(_, place)| **place != 0) {
            let offset = place & ((1 << OFFSET_BITS) - 1);
            let value = ((place >> OFFSET_BITS) - first + 1) << offset_bits | offset;
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
                let offset = value & ((1 << self.offset_bits) - 1);
                // Larger ones are foreign bytes.
                ((self.first + sco - 1) << OFFSET_BITS | offset) & PLACE_MAX
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::{decode_leaf, encode_leaf};
    use proptest::prelude::*;

    fn pack(sco: u64, offset: u64) -> u64 {
        (sco + 1) << OFFSET_BITS | offset
    }

    fn check(places: &[u64; FANOUT]) -> Option<usize> {
        assert!(*decode_leaf(9, &encode_leaf(9, places)).unwrap() == *places);
        let packed = Packed::new(places)?;
        assert!(*packed.places() == *places);
        let mut w = Writer::default();
        packed.write(&mut w);
        assert_eq!(Packed::read(&mut Reader::new("leaf", &w.0)).as_ref(), Ok(&packed));
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
            *place = pack(1 << 30, index as u64);
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
            *place = pack(if index % 2 == 0 { (1 << 47) - 2 } else { 0 }, 0xffff);
        }
        assert_eq!(check(&places), None);
    }

    proptest! {
        /// As many SCOs, and as many clusters of each, as there may be.
        #[test]
        fn packed_places_are_what_they_were(
            entries in prop::collection::vec((0usize..FANOUT, 0u64..1 << 46, 0u64..1 << 16, 1usize..40), 0..300),
            sco_bits in 0u32..46,
            offset_bits in 0u32..16,
            first in 0u64..1 << 40,
        ) {
            let mut places = [0; FANOUT];
            for (index, sco, offset, count) in entries {
                let (of_sco, offset) = (first + (sco & ((1 << sco_bits) - 1)), offset & ((1 << offset_bits) - 1));
                for (number, slot) in places[index..].iter_mut().take(count).enumerate() {
                    let place = pack(of_sco, (offset + number as u64).min(0xffff));
                    *slot = if sco % 5 == 0 { 0 } else { place };
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
                *place = pack(random >> 46, random >> 8 & 1023);
            }
            prop_assert!(check(&places).unwrap() <= FANOUT * 29 / 8 + 64);
        }
    }
}
