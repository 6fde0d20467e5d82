//! What holds for every decoder, whatever it is given: no panic, what was taken comes back, memory stays within a bound
//! that follows the input.

mod memory;

use memory::most_bytes;
use ovs_decoders::{FAMILIES, Family};
use proptest::{
    collection::vec,
    prelude::*,
    sample::{Index, select},
    test_runner::{TestCaseError, TestRunner},
};

/// Cuts and claims are tried at every byte of a seed up to here, and at some bytes behind.
const EVERY_BYTE_BELOW: usize = 600;
/// How many of the bytes behind are passed over each time; no power of two, so that fields of all kinds are met.
const STRIDE: usize = 97;

/// A check within the family's bound.
fn check(family: &Family, bytes: &[u8]) -> bool {
    let (taken, most) = most_bytes(|| (family.check)(bytes));
    let bound = family.memory_bytes + family.memory_per_byte * bytes.len();
    assert!(
        most <= bound,
        "{}: {most} bytes for {} bytes of input, {bound} are allowed",
        family.name,
        bytes.len()
    );
    taken
}

/// A number of cases that takes about as long for every family.
fn cases(family: &Family) -> u32 {
    match family.name {
        "nbd_client" => 150,
        "nbd_server" | "replay" | "qcow2" => 300,
        _ => 2000,
    }
}

fn each_family(strategy: impl Fn(&Family) -> BoxedStrategy<Vec<u8>>) {
    for family in &FAMILIES {
        let config =
            ProptestConfig { cases: cases(family), failure_persistence: None, ..ProptestConfig::default() };
        let mut runner = TestRunner::new(config);
        let result = runner.run(&strategy(family), |bytes| {
            check(family, &bytes);
            Ok::<(), TestCaseError>(())
        });
        if let Err(error) = result {
            panic!("{}: {error}", family.name);
        }
    }
}

fn places(length: usize) -> impl Iterator<Item = usize> {
    (0..length.min(EVERY_BYTE_BELOW)).chain((EVERY_BYTE_BELOW..length).step_by(STRIDE))
}

fn each_seed(check_seed: impl Fn(&Family, &[u8])) {
    for family in &FAMILIES {
        (family.seeds)().iter().for_each(|seed| check_seed(family, seed));
    }
}

#[test]
fn seeds_are_taken() {
    each_seed(|family, seed| {
        assert!(check(family, seed), "{}: {}", family.name, String::from_utf8_lossy(seed));
    });
}

#[test]
fn noise_does_no_harm() {
    each_family(|_| vec(any::<u8>(), 0..5000).boxed());
}

#[test]
fn changed_seeds_do_no_harm() {
    each_family(|family| {
        let change = (any::<Index>(), prop_oneof![Just(0), Just(0xff), Just(0x7f), any::<u8>()]);
        let seeds = ((family.seeds)(), (family.seeds)());
        (select(seeds.0), select(seeds.1), vec(change, 0..8), any::<Index>(), any::<bool>())
            .prop_map(|(mut bytes, other, changes, at, is_spliced)| {
                if is_spliced {
                    // The beginning of one and the end of another.
                    bytes.truncate(at.index(bytes.len() + 1));
                    bytes.extend_from_slice(&other[at.index(other.len() + 1)..]);
                }
                for (at, value) in changes {
                    if !bytes.is_empty() {
                        let at = at.index(bytes.len());
                        bytes[at] = value;
                    }
                }
                bytes
            })
            .boxed()
    });
}

#[test]
fn a_seed_cut_anywhere_does_no_harm() {
    each_seed(|family, seed| {
        for length in places(seed.len()) {
            check(family, &seed[..length]);
        }
    });
}

/// Wherever a length, a count or an offset may be: as large as it can be, in either order of bytes, and nothing.
#[test]
fn a_seed_that_claims_too_much_anywhere_costs_nothing() {
    let claims: [&[u8]; 6] = [
        &[0xff; 8],
        &[0xff; 4],
        &[0x7f, 0xff, 0xff, 0xff],
        &[0xff, 0xff, 0xff, 0x7f],
        &[0; 4],
        &[0xff, 0xff],
    ];
    each_seed(|family, seed| {
        for at in places(seed.len()) {
            for claim in claims {
                let mut bytes = seed.to_vec();
                let length = claim.len().min(bytes.len() - at);
                bytes[at..at + length].copy_from_slice(&claim[..length]);
                check(family, &bytes);
            }
        }
    });
}

/// The bound itself is held to: something that allocates what it is told is found out.
#[test]
fn a_decoder_that_believes_a_length_is_caught() {
    let believing = |bytes: &[u8]| {
        let claimed = u32::from_le_bytes(*bytes.first_chunk().expect("four bytes"));
        Vec::<u8>::with_capacity(claimed as usize).capacity() > 0
    };
    let (_, most) = most_bytes(|| believing(&(64_u32 << 20).to_le_bytes()));
    assert!(most >= 64 << 20);
    assert!(FAMILIES.iter().all(|family| family.memory_bytes < 64 << 20));
}
