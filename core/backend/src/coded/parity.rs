//! Parity: Reed-Solomon over bytes. Byte i of every parity fragment depends on byte i of the data fragments alone, so that any
//! range of one can be had from the same range of k others.

use reed_solomon_erasure::galois_8::ReedSolomon;

/// So much of each fragment is in the processor's cache while parity of it is made.
const STRIP_BYTES: usize = 16 << 10;

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
    let mut padded = [0; STRIP_BYTES];
    for from in (0..length).step_by(STRIP_BYTES) {
        let to = length.min(from + STRIP_BYTES);
        let mut parity: Vec<&mut [u8]> = parity.iter_mut().map(|parity| &mut parity[from..to]).collect();
        for index in 0..usize::from(data_count) {
            let fragment = data.get(index).copied().unwrap_or_default();
            let strip = match fragment.get(from..to) {
                Some(strip) => strip,
                None => {
                    let end = fragment.get(from..).unwrap_or_default();
                    padded.fill(0);
                    padded[..end.len()].copy_from_slice(end);
                    &padded[..to - from]
                }
            };
            let coded = code.encode_single_sep(index, strip, &mut parity);
            coded.expect("as many and as long as the code is made for");
        }
    }
}

/// One range of all fragments of a chunk, data first; `None` where it is not known. Finds out the range of data fragment
/// `wanted`, if k are known. All that are known have the same length.
pub(super) fn reconstruct(known: &[Option<Vec<u8>>], data_count: u8, wanted: u8) -> Option<Vec<u8>> {
    let data_count = usize::from(data_count);
    if known.iter().flatten().count() < data_count {
        return None;
    }
    if let Some(there) = &known[usize::from(wanted)] {
        return Some(there.clone());
    }
    if data_count == 1 {
        return known.iter().flatten().next().cloned();
    }
    let mut fragments = known.to_vec();
    let parity_count = known.len() - data_count;
    code(data_count as u8, parity_count as u8).reconstruct_data(&mut fragments).ok()?;
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
            let padded = data.iter().cloned().map(|mut fragment| {
                fragment.resize(length, 0);
                fragment
            });
            let all: Vec<Vec<u8>> = padded.chain(parity).collect();
            for lost in 0u32..1 << all.len() {
                let known: Vec<Option<Vec<u8>>> = all
                    .iter()
                    .enumerate()
                    .map(|(i, f)| (lost >> i & 1 == 0).then(|| f[20..60].to_vec()))
                    .collect();
                for (wanted, fragment) in all[..k].iter().enumerate() {
                    let found = reconstruct(&known, k as u8, wanted as u8);
                    let expected = (lost.count_ones() as usize <= m).then(|| fragment[20..60].to_vec());
                    assert_eq!(found, expected, "({k}, {m}) without {lost:b}: fragment {wanted}");
                }
            }
        }
    }
}
