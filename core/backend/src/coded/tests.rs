//! The coded backend over drives in memory: whatever is lost or damaged, what is served is what was put.

use super::*;
use crate::conformance::{Rules, check_backend};
use crate::{Call, Fault, FaultyBackend, MemoryBackend, Operation};
use ovs_direct_io::Buffer;
use ovs_format::fragment::{HEADER_BYTES, Header, NONCE_BYTES};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use tokio::task::LocalSet;
use uuid::Uuid;

mod life;
mod lives;
mod trouble;
mod unfinished;
mod verify;

type Memory = FaultyBackend<MemoryBackend>;

struct World {
    drives: Vec<Rc<Memory>>,
    /// How often it was restarted.
    process: Rc<Cell<u32>>,
    backend: CodedBackend,
}

fn policy(k: u8, m: u8, c: u8, x: u32) -> Policy {
    Policy::new(k, m, c, x).expect("a good policy")
}

fn preset(policies: &[Policy]) -> Preset {
    Preset::new(policies.to_vec()).expect("a policy")
}

/// So many drives, three a node.
fn world(count: usize, preset: Preset) -> World {
    let drives: Vec<Rc<Memory>> =
        (0..count).map(|_| Rc::new(FaultyBackend::new(MemoryBackend::new(), |_| None))).collect();
    World { backend: reopen(&drives, preset), drives, process: Rc::default() }
}

fn reopen(drives: &[Rc<Memory>], preset: Preset) -> CodedBackend {
    reopen_without(&[], drives, preset)
}

/// The same when what these drives had is lost and not made again.
fn reopen_without(lost: &[usize], drives: &[Rc<Memory>], preset: Preset) -> CodedBackend {
    let drive = |(number, backend): (usize, &Rc<Memory>)| Drive {
        duty: if lost.contains(&number) { Duty::Lost } else { Duty::Serving },
        ..drive(number, backend)
    };
    let departed = lost.iter().filter(|number| **number >= drives.len()).map(|number| {
        let id = Uuid::from_u128(*number as u128 + 1);
        Drive::departed(id, format!("node-{}", number / 3), String::new(), 1, Duty::Lost)
    });
    let all = drives.iter().enumerate().map(drive).chain(departed).collect();
    CodedBackend::new(all, preset, Work::Here).expect("good drives")
}

/// Three a node.
fn drive(number: usize, backend: &Rc<Memory>) -> Drive {
    Drive {
        id: Uuid::from_u128(number as u128 + 1),
        node: format!("node-{}", number / 3),
        site: String::new(),
        weight: 1,
        backend: Rc::clone(backend) as Rc<dyn Backend>,
        duty: Duty::Serving,
    }
}

impl World {
    /// Nothing is remembered.
    fn forget(&mut self) {
        self.backend = reopen(&self.drives, (*self.backend.inner.preset()).clone());
    }

    fn fragments(&self) -> Vec<(usize, ObjectName)> {
        let of = |(index, drive): (usize, &Rc<Memory>)| {
            drive.inner().names().into_iter().map(move |name| (index, name)).collect::<Vec<_>>()
        };
        self.drives.iter().enumerate().flat_map(of).collect()
    }

    async fn put(&self, object: &str, bytes: &Bytes) -> Result<(), BackendError> {
        let parts = bytes.chunks(50_001).map(Bytes::copy_from_slice).collect();
        self.backend.put(&name(object), parts, Urgency::Normal).await
    }

    /// Until no fragment is on its way.
    async fn put_whole(&self, object: &str, bytes: &Bytes) {
        self.put(object, bytes).await.expect("put");
        self.backend.settle().await;
    }

    async fn get(&self, object: &str) -> Result<Bytes, BackendError> {
        self.backend.get(&name(object)).await
    }

    /// Of what was put, fragments of the first chunk go until so many are left.
    fn leave(&self, count: usize) {
        let is_first =
            |fragment: &ObjectName| name::parse(fragment).is_some_and(|(_, place)| place.chunk == 0);
        let first = self.fragments().into_iter().filter(|(_, fragment)| is_first(fragment));
        first.skip(count).for_each(|(drive, fragment)| self.drives[drive].inner().damage(&fragment, None));
    }

    fn set_schedule(&self, schedule: impl FnMut(usize, &Call<'_>) -> Option<Fault> + 'static) {
        let schedule = Rc::new(RefCell::new(schedule));
        for (number, drive) in self.drives.iter().enumerate() {
            let schedule = Rc::clone(&schedule);
            drive.set_schedule(move |call| (schedule.borrow_mut())(number, call));
        }
    }
}

fn name(text: &str) -> ObjectName {
    ObjectName::new(text).expect("a good name")
}

/// Half of it compresses.
fn bytes(seed: u32, length: usize) -> Bytes {
    let noise = |i: usize| ((i as u32 ^ seed).wrapping_mul(2_654_435_761) >> 24) as u8;
    (0..length).map(|i| if i / 10_000 % 2 == 0 { noise(i) } else { (i / 500) as u8 }).collect()
}

fn local<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    LocalSet::new().block_on(&runtime.expect("a runtime"), work)
}

fn key(number: u32) -> Key {
    Key::new(number.try_into().expect("not 0"), &[number as u8; 32])
}

/// Every combination that differs in how bytes are treated.
fn presets(policies: &[Policy]) -> Vec<Preset> {
    let of = |compression| preset(policies).with_compression(compression);
    let plain = [Compression::None, Compression::Lz4, Compression::Zstd].map(of);
    let small = |preset: Preset| preset.with_fragments_of(FRAME_BYTES * 2).expect("allowed");
    let encrypted =
        plain.clone().map(|preset| small(preset).with_keys(vec![key(1)]).expect("different keys"));
    plain.into_iter().chain(encrypted).collect()
}

#[test]
fn it_is_a_backend_like_any_other() {
    for policies in
        [vec![policy(1, 0, 1, 1)], vec![policy(4, 2, 5, 2)], vec![policy(1, 2, 2, 1), policy(1, 0, 1, 9)]]
    {
        for preset in presets(&policies) {
            local(async {
                let world = world(9, preset);
                check_backend(&world.backend, Rules { folders: false, lengths: false }).await;
            });
        }
    }
}

#[test]
fn all_patterns_of_lost_fragments_are_read_as_far_as_parity_goes() {
    for (k, m) in [(1, 0), (1, 1), (1, 3), (2, 1), (2, 2), (3, 2), (4, 2), (5, 3)] {
        for preset in presets(&[policy(k, m, k + m, 3)]) {
            // Of no frame, of one, of fewer than fragments, of all, of two chunks.
            for length in [0, 1, 32_768, 70_000, 65_536 * usize::from(k), 65_536 * usize::from(k) + 32_769] {
                local(lose_all_patterns(k, m, preset.clone(), length));
            }
        }
    }
}

async fn lose_all_patterns(k: u8, m: u8, preset: Preset, length: usize) {
    let mut world = world(9, preset);
    let expected = bytes(7, length);
    world.put_whole("v/s/1", &expected).await;
    let all = world.fragments();
    let first: Vec<_> = all
        .iter()
        .filter(|(_, fragment)| name::parse(fragment).is_some_and(|(_, place)| place.chunk == 0))
        .cloned()
        .collect();
    for lost in 0u32..1 << first.len() {
        let count = lost.count_ones();
        if count > u32::from(m) + 1 {
            continue;
        }
        let gone: Vec<_> =
            (0..first.len()).filter(|index| lost >> index & 1 == 1).map(|index| &first[index]).collect();
        let kept: Vec<_> =
            gone.iter().map(|(drive, name)| world.drives[*drive].inner().bytes(name)).collect();
        gone.iter().for_each(|(drive, name)| world.drives[*drive].inner().damage(name, None));
        world.forget();
        let read = world.get("v/s/1").await;
        let range = world.backend.get_range(&name("v/s/1"), length as u64 / 2, 5000).await;
        if count <= u32::from(m) {
            assert!(
                read.as_ref() == Ok(&expected),
                "({k}, {m}) {length} bytes without {gone:?}: {:?}",
                read.err()
            );
            let end = (length / 2 + 5000).min(length);
            assert_eq!(range.expect("a range"), expected[length / 2..end]);
        } else if gone.len() == first.len() {
            let error = read.expect_err("nothing is there");
            assert!(
                matches!(error, BackendError::NotFound { .. } | BackendError::Incomplete { .. }),
                "{error}"
            );
        } else {
            let error = read.expect_err("too few");
            assert!(matches!(error, BackendError::Incomplete { .. }), "({k}, {m}) without {gone:?}: {error}");
        }
        gone.iter()
            .zip(kept)
            .for_each(|((drive, name), bytes)| world.drives[*drive].inner().damage(name, bytes));
    }
}

#[derive(Debug, Clone)]
enum Damage {
    Flip(usize),
    Truncate(usize),
    /// What is under another name, on any drive.
    Swap(usize),
    /// The same fragment of an older put of the name, which had other bytes.
    Old,
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        any::<usize>().prop_map(Damage::Flip),
        // Where it matters most.
        (0..8 * 400usize).prop_map(Damage::Flip),
        any::<usize>().prop_map(Damage::Truncate),
        any::<usize>().prop_map(Damage::Swap),
        Just(Damage::Old),
    ]
}

fn cases(count: u32) -> ProptestConfig {
    let count = std::env::var("OVS_CORRUPTIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(count);
    ProptestConfig { cases: count, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(1500))]

    #[test]
    fn nothing_that_was_changed_is_served(
        which in 0..6usize,
        damages in prop::collection::vec((any::<prop::sample::Index>(), damage()), 1..4),
        at in any::<prop::sample::Index>(),
        // Of the second size fragments are whole blocks.
        size in prop_oneof![Just(210_000), Just(310_000)],
    ) {
        let (k, m) = (3, 2);
        let preset = presets(&[policy(k, m, k + m, 3)])[which].clone();
        local(async move {
            let older = world(9, preset.clone());
            let mut world = world(9, preset);
            let (first, second) = (bytes(1, size), bytes(2, size));
            older.put_whole("v/a/1", &second).await;
            world.put_whole("v/a/1", &first).await;
            world.put_whole("v/b/1", &second).await;
            let all = world.fragments();
            let mine: Vec<_> =
                all.iter().filter(|(_, found)| name::parse(found).is_some_and(|(of, ..)| of == name("v/a/1"))).collect();
            let mut touched: BTreeMap<u32, BTreeSet<u8>> = BTreeMap::new();
            let mut brought_back = 0;
            for (index, damage) in damages {
                let (drive, fragment) = index.get(&mine);
                let (_, name::Place { chunk, number, .. }) = name::parse(fragment).expect("a fragment");
                // A whole older put, and less than enough of the newer, is what a store says that was set back as a whole: who
                // asks for an SCO knows which put it wants.
                brought_back += u8::from(matches!(damage, Damage::Old));
                if matches!(damage, Damage::Old) && brought_back > m {
                    continue;
                }
                let old = world.drives[*drive].inner().bytes(fragment).expect("it is there");
                if old.is_empty() {
                    // Nothing is left of it to change.
                    continue;
                }
                let new = match damage {
                    Damage::Flip(bit) => {
                        let mut new = old.to_vec();
                        let bit = bit % (new.len() * 8);
                        new[bit / 8] ^= 1 << (bit % 8);
                        Some(Bytes::from(new))
                    }
                    Damage::Truncate(length) => Some(old.slice(..length % old.len())),
                    Damage::Swap(other) => {
                        let (drive, other) = &all[other % all.len()];
                        world.drives[*drive].inner().bytes(other)
                    }
                    Damage::Old => older.drives[*drive].inner().bytes(fragment),
                };
                if new.as_ref() != Some(&old) {
                    touched.entry(chunk).or_default().insert(number);
                }
                world.drives[*drive].inner().damage(fragment, new);
            }
            world.forget();
            let from = at.index(200_000);
            let repairable = touched.values().all(|numbers| numbers.len() <= usize::from(m));
            for (read, expected) in [
                (world.backend.get_range(&name("v/a/1"), from as u64, 4096).await, first.slice(from..from + 4096)),
                (world.get("v/a/1").await, first.clone()),
            ] {
                match read {
                    Ok(read) => assert!(read == expected, "other bytes were served"),
                    Err(error) => assert!(!repairable, "{touched:?}: {error}"),
                }
            }
            assert!(world.get("v/b/1").await == Ok(second));
            // All of it is found by reading everything, and made good where parity allows.
            world.verify_all().await;
            let mended = world.backend.look_after(true).await;
            if repairable {
                assert_eq!(mended.safety.keys().copied().collect::<Vec<_>>(), [u32::from(m)], "{touched:?}: {mended:?}");
                assert_eq!(world.verify_all().await.bad, 0, "{touched:?}");
            }
            world.forget();
            match world.get("v/a/1").await {
                Ok(read) => assert!(read == first, "other bytes were served"),
                Err(error) => assert!(!repairable, "{touched:?}: {error}"),
            }
        });
    }
}

#[test]
fn a_put_returns_when_enough_is_stored_and_the_rest_follows() {
    local(async {
        let world = world(9, preset(&[policy(4, 2, 5, 3)]));
        let expected = bytes(3, 300_000);
        let order = placement::order(&world.backend.inner.drives(), &name("v/s/1"), 0);
        let slow = order[2];
        world.drives[slow].set_schedule(|call: &Call<'_>| {
            let wait = Box::pin(tokio::time::sleep(std::time::Duration::from_secs(20)));
            (call.operation == Operation::Put).then_some(Fault::Delay(wait))
        });
        world.put("v/s/1", &expected).await.expect("five are enough");
        assert_eq!(world.fragments().len(), 5);
        assert!(world.get("v/s/1").await == Ok(expected));
        world.backend.settle().await;
        assert_eq!(world.fragments().len(), 6);
        // Whoever deletes it meanwhile waits for what is on its way.
        world.put("v/s/1", &bytes(3, 300_000)).await.expect("the same again");
        world.backend.delete(&name("v/s/1")).await.expect("deleted");
        world.backend.settle().await;
        assert_eq!(world.fragments(), []);
    });
}

#[test]
fn others_take_what_a_drive_does_not() {
    local(async {
        let mut world = world(9, preset(&[policy(4, 2, 6, 3)]));
        let expected = bytes(4, 200_000);
        for (number, fault) in [(0, "error"), (1, "hang"), (2, "full")] {
            world.drives[number].set_schedule(move |call: &Call<'_>| match (call.operation, fault) {
                (Operation::Put, "error") => Some(Fault::ErrorBefore),
                (Operation::Put, "hang") => {
                    let wait = Box::pin(async {
                        tokio::time::sleep(std::time::Duration::from_secs(900)).await;
                    });
                    Some(Fault::Delay(wait))
                }
                (Operation::Put, _) => Some(Fault::NoSpace),
                _ => None,
            });
        }
        for object in 0..20 {
            world.put_whole(&format!("v/s/{object}"), &expected).await;
        }
        assert_eq!(world.backend.stats().missing, 0);
        assert!(world.backend.stats().misplaced > 0);
        world.forget();
        for object in 0..20 {
            assert!(world.get(&format!("v/s/{object}")).await == Ok(expected.clone()), "{object}");
        }
        // Deleted wherever it is; not while a drive has not said what became of a put.
        tokio::time::sleep(std::time::Duration::from_secs(1000)).await;
        for object in 0..20 {
            world.backend.delete(&name(&format!("v/s/{object}"))).await.expect("deleted");
        }
        assert_eq!(world.fragments(), []);
    });
}

#[test]
fn drives_that_do_not_answer_make_nothing_absent() {
    local(async {
        let mut world = world(6, preset(&[policy(2, 2, 3, 3)]));
        let expected = bytes(5, 100_000);
        world.put_whole("v/s/1", &expected).await;
        let silence = |world: &World, count: usize| {
            for (number, drive) in world.drives.iter().enumerate() {
                drive.set_schedule(move |_| (number < count).then_some(Fault::ErrorBefore));
            }
        };
        for count in 0..=6 {
            world.forget();
            silence(&world, count);
            let missing = world.get("v/s/2").await.expect_err("it was never put");
            let listed = world.backend.list("v/", None, 9).await;
            let deleted = world.backend.delete(&name("v/s/2")).await;
            if count <= 1 {
                assert!(matches!(missing, BackendError::NotFound { .. }), "{count}: {missing}");
                assert_eq!(listed.expect("a listing").len(), 1);
                assert_eq!(deleted.is_ok(), count == 0);
            } else {
                assert!(matches!(missing, BackendError::Retry { .. }), "{count}: {missing}");
                assert!(matches!(listed, Err(BackendError::Retry { .. })), "{count}");
                assert!(matches!(deleted, Err(BackendError::Retry { .. })), "{count}");
            }
            match world.get("v/s/1").await {
                Ok(read) => assert!(read == expected),
                Err(error) => {
                    assert!(count > 2 && matches!(error, BackendError::Retry { .. }), "{count}: {error}")
                }
            }
        }
    });
}

#[test]
fn a_lesser_policy_serves_while_drives_are_away() {
    local(async {
        let mut world = world(6, preset(&[policy(4, 2, 5, 3), policy(2, 1, 3, 3)]));
        for number in [0, 1, 2] {
            world.drives[number].set_schedule(|_| Some(Fault::ErrorBefore));
        }
        // The first put finds out; later ones know.
        let expected = bytes(6, 150_000);
        for object in 0..4 {
            let _first_ones_fail = world.put(&format!("v/s/{object}"), &expected).await;
        }
        world.put_whole("v/s/9", &expected).await;
        world.drives.iter().for_each(|drive| drive.set_schedule(|_| None));
        world.forget();
        assert!(world.get("v/s/9").await == Ok(expected));
    });
}

#[test]
fn what_is_encrypted_shows_nothing_and_needs_its_key() {
    local(async {
        let encrypted = preset(&[policy(2, 1, 3, 3)]).with_compression(Compression::Lz4);
        let mut world = world(6, encrypted.clone().with_keys(vec![key(1)]).expect("different keys"));
        let secret = Bytes::from(b"a guest's secret that is nobody's business. ".repeat(3000));
        world.put_whole("v/s/1", &secret).await;
        for (drive, fragment) in world.fragments() {
            let stored = world.drives[drive].inner().bytes(&fragment).expect("it is there");
            assert!(!stored.windows(12).any(|window| window == &secret[..12]));
        }
        // A newer key: what was put under the older one is read as long as that is there.
        world.backend =
            reopen(&world.drives, encrypted.clone().with_keys(vec![key(1), key(2)]).expect("different keys"));
        world.put_whole("v/s/2", &secret).await;
        for object in ["v/s/1", "v/s/2"] {
            assert!(world.get(object).await == Ok(secret.clone()));
        }
        world.backend =
            reopen(&world.drives, encrypted.clone().with_keys(vec![key(2)]).expect("different keys"));
        let error = world.get("v/s/1").await.expect_err("its key is gone");
        assert!(matches!(error, BackendError::Retry { .. }), "{error}");
        assert!(error.to_string().contains("key 1 is not there"), "{error}");
        assert!(world.get("v/s/2").await == Ok(secret.clone()));
        // Of the same number, and another.
        let other = Key::new(2.try_into().expect("not 0"), &[9; 32]);
        world.backend = reopen(&world.drives, encrypted.with_keys(vec![other]).expect("different keys"));
        let error = world.get("v/s/2").await.expect_err("the wrong key");
        assert!(matches!(error, BackendError::Lost { .. }), "{error}");
    });
}

#[test]
fn keys_that_are_set_count_for_the_next_put_and_not_in_the_midst_of_one() {
    local(async {
        let encrypted = preset(&[policy(2, 1, 3, 3)]).with_fragments_of(FRAME_BYTES).expect("allowed");
        let mut world = world(6, encrypted.clone().with_keys(vec![key(1)]).expect("different keys"));
        let refused = world.backend.set_keys(vec![key(1), key(1)]);
        assert_eq!(refused, Err(PresetError::Twice("key 1".into())));
        // Of several chunks: others are set when the first fragment of one is put.
        let bytes = Bytes::from(b"neither here nor there ".repeat(20_000));
        let is_set = Rc::new(Cell::new(false));
        let (backend, was_set) = (world.backend.clone(), is_set.clone());
        world.set_schedule(move |_, call| {
            if call.operation == Operation::Put && !was_set.replace(true) {
                backend.set_keys(vec![key(1), key(2)]).expect("different keys");
            }
            None
        });
        world.put_whole("v/s/1", &bytes).await;
        assert!(is_set.get());
        world.put_whole("v/s/2", &bytes).await;
        for object in ["v/s/1", "v/s/2"] {
            assert!(world.get(object).await == Ok(bytes.clone()), "{object}");
        }
        // Each is of one key alone.
        for (keys, other) in [(vec![key(1)], "v/s/2"), (vec![key(2)], "v/s/1")] {
            world.backend = reopen(&world.drives, encrypted.clone().with_keys(keys).expect("different keys"));
            let error = world.get(other).await.expect_err("its key is not there");
            assert!(error.to_string().contains("is not there"), "{error}");
        }
    });
}

#[test]
fn a_cold_read_of_a_cluster_asks_one_drive_for_little() {
    local(async {
        use crate::CountingBackend;
        let drives: Vec<Rc<CountingBackend<MemoryBackend>>> =
            (0..6).map(|_| Rc::new(CountingBackend::new(MemoryBackend::new()))).collect();
        let open = || {
            let drive = |(number, backend): (usize, &Rc<CountingBackend<MemoryBackend>>)| Drive {
                id: Uuid::from_u128(number as u128),
                node: String::new(),
                site: String::new(),
                weight: 1,
                duty: Duty::Serving,
                backend: Rc::clone(backend) as Rc<dyn Backend>,
            };
            let drives = drives.iter().enumerate().map(drive).collect();
            CodedBackend::new(drives, preset(&[policy(4, 2, 5, 9)]), Work::Here).expect("good drives")
        };
        let sum = |of: fn(&crate::Counts) -> u64| drives.iter().map(|drive| of(&drive.counts())).sum::<u64>();
        let object = bytes(8, 4 << 20);
        let backend = open();
        backend.put(&name("v/s/1"), vec![object.clone()], Urgency::Normal).await.expect("put");
        backend.settle().await;
        let backend = open();
        backend.get_range(&name("v/s/1"), 0, 4096).await.expect("what an SCO begins with");
        let before = (
            sum(|counts| counts.get.bytes),
            drives.iter().map(|drive| drive.counts().get.calls).collect::<Vec<_>>(),
        );
        let read = backend.get_range(&name("v/s/1"), 3_000_000 / 4096 * 4096, 4096).await.expect("a cluster");
        assert_eq!(read, object.slice(3_000_000 / 4096 * 4096..3_000_000 / 4096 * 4096 + 4096));
        let asked =
            drives.iter().zip(before.1).filter(|(drive, before)| drive.counts().get.calls > *before).count();
        assert_eq!(asked, 1);
        let bytes = sum(|counts| counts.get.bytes) - before.0;
        assert!(bytes <= (64 << 10) + 2048, "{bytes} bytes for one cluster");
    });
}

#[test]
fn what_is_put_again_under_another_policy_is_the_same_object() {
    local(async {
        let policies = [policy(4, 2, 6, 3), policy(2, 1, 3, 3)];
        let preset =
            preset(&policies).with_compression(Compression::Zstd).with_keys(vec![key(1)]).expect("one key");
        let mut world = world(6, preset.clone());
        let expected = bytes(9, 320 << 10);
        // Three fragments of the first policy; then it is not satisfied any more.
        for number in [0, 1, 2] {
            world.drives[number].set_schedule(|_| Some(Fault::ErrorBefore));
        }
        world.put("v/s/1", &expected).await.expect_err("three of six drives");
        assert_eq!(world.fragments().len(), 3);
        world.put("v/s/1", &expected).await.expect("three are enough for the second");
        assert_eq!(world.fragments().len(), 6);
        world.put("v/s/1", &expected).await.expect("the same again");
        // No nonce is there for two texts.
        let mut texts: BTreeMap<Bytes, Bytes> = BTreeMap::new();
        for (drive, fragment) in world.fragments() {
            let stored = world.drives[drive].inner().bytes(&fragment).expect("it is there");
            let header = Header::decode(&stored).expect("a header");
            if header.fragment >= header.geometry.data {
                continue;
            }
            let body = stored.slice(HEADER_BYTES..);
            for entry in header.decode_index(header.fragment, &body).expect("an index") {
                let frame =
                    body.slice(entry.offset as usize..entry.offset as usize + entry.stored_bytes as usize);
                let (nonce, text) = (frame.slice(..NONCE_BYTES), frame.slice(NONCE_BYTES..));
                assert_eq!(texts.entry(nonce).or_insert_with(|| text.clone()), &text);
            }
        }
        assert!(texts.len() > 8);
        world.drives.iter().for_each(|drive| drive.set_schedule(|_| None));
        world.forget();
        assert!(world.get("v/s/1").await == Ok(expected.clone()));
        world.put("v/s/1", &bytes(10, 320 << 10)).await.expect_err("other bytes");
        assert!(world.get("v/s/1").await == Ok(expected));
        world.backend.delete(&name("v/s/1")).await.expect("deleted");
        assert!(!world.fragments().iter().any(|(_, fragment)| fragment.as_str().starts_with("v/s/1-")));
    });
}

/// So that directories take them as they are, past the page cache.
#[test]
fn long_fragments_are_whole_blocks() {
    local(async {
        let plain = preset(&[policy(4, 2, 6, 6)]);
        let sealed =
            || preset(&[policy(4, 2, 6, 6)]).with_compression(Compression::Lz4).with_keys(vec![key(1)]);
        for preset in [plain, sealed().expect("one key")] {
            let mut world = world(6, preset);
            // What a buffer had in it before shows nowhere.
            (0..8)
                .map(|_| Buffer::of(300_000))
                .collect::<Vec<_>>()
                .iter_mut()
                .for_each(|buffer| buffer.fill(0xee));
            let mut expected = vec![7; 1_000_001];
            expected[300_000..].copy_from_slice(&bytes(1, 700_001));
            let expected = Bytes::from(expected);
            let parts = [0..1, 1..40_000, 40_000..40_000, 40_000..900_000, 900_000..1_000_001];
            let parts = parts.map(|part| expected.slice(part)).to_vec();
            world.backend.put(&name("v/s/1"), parts, Urgency::Normal).await.expect("stored");
            world.put_whole("v/s/1", &expected).await;
            assert_eq!(world.fragments().len(), 6, "the same again, from other buffers and parts");
            for (drive, fragment) in world.fragments() {
                let stored = world.drives[drive].inner().bytes(&fragment).expect("it is there");
                let header = Header::decode(&stored).expect("a header");
                assert!(stored.len() > 4096 && stored.len().is_multiple_of(4096), "{} bytes", stored.len());
                if header.fragment < 4 {
                    let entries =
                        header.decode_index(header.fragment, &stored[HEADER_BYTES..]).expect("an index");
                    let last = entries.last().expect("frames");
                    let index_end = HEADER_BYTES + header.geometry.index_bytes(0, header.fragment);
                    let frames_end = HEADER_BYTES + last.offset as usize + last.stored_bytes as usize;
                    assert_eq!(HEADER_BYTES as u64 + entries[0].offset, 4096);
                    assert!(
                        stored[index_end..4096].iter().chain(&stored[frames_end..]).all(|byte| *byte == 0)
                    );
                }
            }
            world.forget();
            assert!(world.get("v/s/1").await == Ok(expected));
        }
    });
}

#[test]
fn a_drive_that_hangs_is_waited_for_once() {
    local(async {
        let mut world = world(6, preset(&[policy(4, 2, 5, 3)]));
        let expected = bytes(11, 400_000);
        for object in 0..8 {
            world.put_whole(&format!("v/s/{object}"), &expected).await;
        }
        world.forget();
        world.drives[1].set_schedule(|_| Some(Fault::HangBefore));
        let begun = tokio::time::Instant::now();
        for object in 0..8 {
            assert!(world.get(&format!("v/s/{object}")).await == Ok(expected.clone()), "{object}");
        }
        assert!(begun.elapsed() <= PATIENCE * 2, "{:?}", begun.elapsed());
        let error = world.backend.delete(&name("v/s/1")).await.expect_err("one drive may have it");
        assert!(matches!(error, BackendError::Retry { .. }), "{error}");
    });
}

#[test]
fn the_only_drive_of_a_node_is_tried_though_it_has_failed() {
    local(async {
        let drives: Vec<Rc<Memory>> =
            (0..6).map(|_| Rc::new(FaultyBackend::new(MemoryBackend::new(), |_| None))).collect();
        let drive = |(number, backend): (usize, &Rc<Memory>)| Drive {
            id: Uuid::from_u128(number as u128 + 1),
            node: number.to_string(),
            site: String::new(),
            weight: 1,
            duty: Duty::Serving,
            backend: Rc::clone(backend) as Rc<dyn Backend>,
        };
        let all = drives.iter().enumerate().map(drive).collect();
        let backend = CodedBackend::new(all, preset(&[policy(4, 2, 5, 1)]), Work::Here).expect("good drives");
        drives[0].set_schedule(|_| Some(Fault::ErrorBefore));
        drives[1].set_schedule(|_| Some(Fault::ErrorBefore));
        for _ in 0..3 {
            let put = backend.put(&name("v/s/1"), vec![bytes(1, 9000)], Urgency::Normal);
            put.await.expect("a short object takes one fragment of data, and one more");
            backend.settle().await;
            let put = backend.put(&name("v/s/2"), vec![bytes(1, 300_000)], Urgency::Normal);
            assert!(matches!(put.await, Err(BackendError::Retry { .. })));
            backend.settle().await;
        }
        drives.iter().for_each(|drive| drive.set_schedule(|_| None));
        let put = backend.put(&name("v/s/2"), vec![bytes(1, 300_000)], Urgency::Normal);
        put.await.expect("they are back");
        backend.settle().await;
        assert!(drives.iter().all(|drive| drive.inner().names().len() <= 2), "one of each object");
    });
}
