//! Parity: Reed-Solomon over bytes. Byte i of every parity fragment depends on byte i of the data fragments alone, so that any
//! range of one can be had from the same range of k others.

use bytes::Bytes;
use ovs_direct_io::Buffer;
use reed_solomon_erasure::galois_8::{ReedSolomon, mul_slice_xor};

/// So much of each fragment is in the processor's second cache while parity of it is made. In the first they are in each other's way: all
/// begin at blocks.
const STRIP_BYTES: usize = 64 << 10;

/// Makes parity of the data fragments, which may differ in length: each counts as ending in zeros where it is shorter, and `data` may
/// be fewer than `data_count`. All parity is as long as the longest; what was in it before does not matter.
pub(super) fn encode(data: &[&[u8]], data_count: u8, parity: &mut [&mut [u8]]) {
    let length = data.iter().map(|fragment| fragment.len()).max().unwrap_or(0);
    if length == 0 || parity.is_empty() {
        return;
    }
    if data_count == 1 {
        parity.iter_mut().for_each(|copy| copy.copy_from_slice(data[0]));
        return;
    }
    let code = code(data_count, parity.len() as u8);
    let mut padded = Vec::new();
    for from in (0..length).step_by(STRIP_BYTES) {
        let to = length.min(from + STRIP_BYTES);
        let mut parity: Vec<&mut [u8]> = parity.iter_mut().map(|parity| &mut parity[from..to]).collect();
        for index in 0..usize::from(data_count) {
            let fragment = data.get(index).copied().unwrap_or_default();
            let strip = match fragment.get(from..to) {
                Some(strip) => strip,
                None => {
                    let end = fragment.get(from..).unwrap_or_default();
                    padded.clear();
                    padded.extend_from_slice(end);
                    padded.resize(to - from, 0);
                    &padded
                }
            };
            let coded = code.encode_single_sep(index, strip, &mut parity);
            coded.expect("as many and as long as the code is made for");
        }
    }
}

/// One range of all fragments of a chunk, data first; `None` where it is not known. Each counts as ending in zeros where it is shorter than
/// `length`. Finds out the range of data fragment `wanted`, if k are known.
pub(super) fn reconstruct(
    known: &[Option<Bytes>],
    data_count: u8,
    wanted: u8,
    length: usize,
) -> Option<Buffer> {
    let sources: Vec<(usize, &Bytes)> =
        known.iter().enumerate().filter_map(|(at, bytes)| Some((at, bytes.as_ref()?))).collect();
    let sources = sources.get(..data_count.into())?;
    let shares: Vec<(u8, &Bytes)> = match &known[usize::from(wanted)] {
        Some(there) => vec![(1, there)],
        None if data_count == 1 => vec![(1, sources[0].1)],
        None => {
            let numbers: Vec<usize> = sources.iter().map(|(at, _)| *at).collect();
            shares(&numbers, data_count, known.len(), wanted)?
                .into_iter()
                .zip(sources.iter().map(|(_, bytes)| *bytes))
                .collect()
        }
    };
    let mut made = Buffer::of(length);
    for from in (0..length).step_by(STRIP_BYTES) {
        let to = length.min(from + STRIP_BYTES);
        let strip = &mut made[from..to];
        strip.fill(0);
        for (share, source) in &shares {
            let source = &source[from.min(source.len())..to.min(source.len())];
            // It takes no empty ones.
            if !source.is_empty() {
                mul_slice_xor(*share, source, &mut strip[..source.len()]);
            }
        }
    }
    Some(made)
}

/// How much of each of these fragments is in the one that is wanted: what would be made of it if the first had a one where all others have zeros,
/// and the second, and so on.
fn shares(numbers: &[usize], data_count: u8, count: usize, wanted: u8) -> Option<Vec<u8>> {
    let mut fragments = vec![None; count];
    for (index, number) in numbers.iter().enumerate() {
        let mut ones = vec![0; numbers.len()];
        ones[index] = 1;
        fragments[*number] = Some(ones);
    }
    let parity_count = count - usize::from(data_count);
    code(data_count, parity_count as u8).reconstruct_data(&mut fragments).ok()?;
    fragments.swap_remove(wanted.into())
}

fn code(data_count: u8, parity_count: u8) -> ReedSolomon {
    ReedSolomon::new(data_count.into(), parity_count.into()).expect("a policy has 1 to 255 fragments")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_k_of_all_are_enough() {
        for (k, m) in [(1, 2), (2, 2), (3, 1), (4, 2), (5, 4)] {
            let data: Vec<Vec<u8>> =
                (0..k).map(|i| (0..100 - i * 7).map(|j| (i * 31 + j * 17 % 251) as u8).collect()).collect();
            let slices: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
            let length = data[0].len();
            let mut parity = vec![vec![0xa5; length]; m];
            encode(&slices, k as u8, &mut parity.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>());
            let all: Vec<Vec<u8>> = data.iter().cloned().chain(parity).collect();
            for lost in 0u32..1 << all.len() {
                let range_of =
                    |fragment: &[u8]| Bytes::copy_from_slice(&fragment[20..fragment.len().min(90)]);
                let known: Vec<Option<Bytes>> =
                    all.iter().enumerate().map(|(i, f)| (lost >> i & 1 == 0).then(|| range_of(f))).collect();
                for (wanted, fragment) in all[..k].iter().enumerate() {
                    let found = reconstruct(&known, k as u8, wanted as u8, 70).map(|made| made.to_vec());
                    let mut expected = range_of(fragment).to_vec();
                    expected.resize(70, 0);
                    let expected = (lost.count_ones() as usize <= m).then_some(expected);
                    assert_eq!(found, expected, "({k}, {m}) without {lost:b}: fragment {wanted}");
                }
            }
        }
    }
}
