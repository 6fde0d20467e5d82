//! Parity: Reed-Solomon over bytes. Byte i of every parity fragment depends on byte i of the data fragments alone, so that any
//! range of one can be had from the same range of k others.

use reed_solomon_erasure::galois_8::ReedSolomon;

/// Parity fragments of the data fragments, which may differ in length: each ends in zeros where it is shorter, and `data` may
/// be fewer than `data_count`.
pub(super) fn encode(data: &[&[u8]], data_count: u8, parity_count: u8) -> Vec<Vec<u8>> {
    let length = data.iter().map(|fragment| fragment.len()).max().unwrap_or(0);
    let mut parity = vec![vec![0; length]; parity_count.into()];
    if length == 0 || parity.is_empty() {
        return parity;
    }
    if data_count == 1 {
        parity.iter_mut().for_each(|copy| copy.copy_from_slice(data[0]));
        return parity;
    }
    let code = code(data_count, parity_count);
    let mut padded = vec![0; length];
    for index in 0..usize::from(data_count) {
        let fragment = data.get(index).copied().unwrap_or_default();
        let whole = if fragment.len() == length {
            fragment
        } else {
            padded[..fragment.len()].copy_from_slice(fragment);
            padded[fragment.len()..].fill(0);
            &padded
        };
        code.encode_single_sep(index, whole, &mut parity)
            .expect("as many and as long as the code is made for");
    }
    parity
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
            let parity = encode(&slices, k as u8, m);
            let length = data[0].len();
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
                    let expected = (lost.count_ones() <= u32::from(m)).then(|| fragment[20..60].to_vec());
                    assert_eq!(found, expected, "({k}, {m}) without {lost:b}: fragment {wanted}");
                }
            }
        }
    }
}
