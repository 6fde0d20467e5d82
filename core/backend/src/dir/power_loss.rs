//! The crash order of `store.rs` against a disk that keeps only what was synced.
//!
//! The disk holds every folder and file twice: as the processes see it and as it is after a power loss. A test runs
//! a few puts and deletes, lets the n-th system call fail or everything from the n-th on (for every n), takes the
//! power away in several ways, opens the folder again, and compares with what was answered. Threads beside each other are
//! in `concurrency.rs`.

use super::{
    disk::{Disk, Space},
    store::{IfUnmarked, Store},
};
use crate::{
    BackendError, ObjectName, Urgency,
    sync::{Mutex, MutexGuard},
};
use bytes::Bytes;
use rustix::io::Errno;
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    sync::Arc,
};

/// Something that is there now and something, perhaps else, that stable storage holds.
#[derive(Clone, Default)]
struct Twice<T> {
    seen: T,
    stable: T,
}

type Names = BTreeMap<String, usize>;

#[derive(Clone)]
enum Node {
    Folder {
        names: Twice<Names>,
        /// Names whose sync failed: the kernel has given them up, and a later sync does not bring them back.
        given_up: BTreeSet<String>,
    },
    File {
        bytes: Twice<Vec<u8>>,
        given_up: bool,
    },
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Trouble {
    None,
    /// This call fails.
    At(u64, Errno),
    /// The process is gone from this call on.
    DeathAt(u64),
    /// No space while this file has any bytes.
    FullWhile(&'static str),
}

#[derive(Clone)]
pub(super) struct State {
    nodes: Vec<Node>,
    pub(super) calls: u64,
    pub(super) trouble: Trouble,
}

/// The disk; clones share it.
#[derive(Clone)]
pub(super) struct LosingDisk(Arc<Mutex<State>>);

impl std::fmt::Debug for LosingDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LosingDisk")
    }
}

fn new_folder() -> Node {
    Node::Folder { names: Twice::default(), given_up: BTreeSet::new() }
}

impl State {
    fn find(&self, path: &Path) -> io::Result<usize> {
        let mut at = 0;
        for segment in path.iter().skip(1) {
            let Node::Folder { names, .. } = &self.nodes[at] else { return Err(Errno::NOTDIR.into()) };
            at = *names.seen.get(segment.to_str().unwrap()).ok_or(Errno::NOENT)?;
        }
        Ok(at)
    }

    /// Puts a node under a free name. A name that was given up is as good as new when it is given again.
    fn insert(&mut self, path: &Path, node: usize) -> io::Result<()> {
        let (names, given_up, name) = self.above(path)?;
        if names.contains_key(&name) {
            return Err(Errno::EXIST.into());
        }
        given_up.remove(&name);
        names.insert(name, node);
        Ok(())
    }

    fn add(&mut self, path: &Path, node: Node) -> io::Result<usize> {
        let new = self.nodes.len();
        self.insert(path, new)?;
        self.nodes.push(node);
        Ok(new)
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        let (names, _, name) = self.above(path)?;
        names.remove(&name).ok_or(Errno::NOENT)?;
        Ok(())
    }

    /// What the folder above a path holds, and the path's last segment.
    fn above(&mut self, path: &Path) -> io::Result<(&mut Names, &mut BTreeSet<String>, String)> {
        let at = self.find(path.parent().unwrap())?;
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        match &mut self.nodes[at] {
            Node::Folder { names, given_up } => Ok((&mut names.seen, given_up, name)),
            Node::File { .. } => Err(Errno::NOTDIR.into()),
        }
    }

    fn file(&mut self, at: usize) -> (&mut Twice<Vec<u8>>, &mut bool) {
        match &mut self.nodes[at] {
            Node::File { bytes, given_up } => (bytes, given_up),
            Node::Folder { .. } => panic!("not a file"),
        }
    }

    pub(super) fn bytes(&self, path: &Path) -> io::Result<&[u8]> {
        match &self.nodes[self.find(path)?] {
            Node::File { bytes, .. } => Ok(&bytes.seen),
            Node::Folder { .. } => Err(Errno::ISDIR.into()),
        }
    }

    fn sync_node(&mut self, at: usize, works: bool) {
        match &mut self.nodes[at] {
            Node::File { bytes, given_up } if works && !*given_up => bytes.stable = bytes.seen.clone(),
            Node::File { given_up, .. } => *given_up = true,
            Node::Folder { names, given_up } if works => {
                let kept = |(name, _): &(&String, &usize)| !given_up.contains(*name);
                names.stable = names.seen.iter().filter(kept).map(|(n, at)| (n.clone(), *at)).collect();
            }
            Node::Folder { names, given_up } => {
                let unsynced = names.seen.iter().filter(|(name, at)| names.stable.get(*name) != Some(at));
                given_up.extend(unsynced.map(|(name, _)| name.clone()));
            }
        }
    }

    /// Stable storage, and of what was not synced that which `keeps` says.
    pub(super) fn lose_power(&mut self, mut keeps: impl FnMut() -> bool) {
        for node in &mut self.nodes {
            match node {
                Node::File { bytes, given_up } => {
                    if bytes.seen != bytes.stable && keeps() {
                        // Half of it made it.
                        let half = bytes.seen.len() / 2;
                        bytes.stable = bytes.seen[..half].to_vec();
                    }
                    bytes.seen = bytes.stable.clone();
                    *given_up = false;
                }
                Node::Folder { names, given_up } => {
                    let all: BTreeSet<_> = names.seen.keys().chain(names.stable.keys()).cloned().collect();
                    for name in all {
                        let (seen, stable) = (names.seen.get(&name), names.stable.get(&name));
                        if seen == stable || !keeps() {
                            continue;
                        }
                        match seen {
                            Some(at) => names.stable.insert(name, *at),
                            None => names.stable.remove(&name),
                        };
                    }
                    names.seen = names.stable.clone();
                    given_up.clear();
                }
            }
        }
    }
}

impl LosingDisk {
    fn new() -> LosingDisk {
        let state = State { nodes: vec![new_folder()], calls: 0, trouble: Trouble::None };
        LosingDisk(Arc::new(Mutex::new(state)))
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// A copy whose fate is its own.
    pub(super) fn fork(&self) -> LosingDisk {
        LosingDisk(Arc::new(Mutex::new(self.state().clone())))
    }

    /// A reserve, and from now on nothing else: every byte fails until the reserve is given back.
    pub(super) fn fill_up(&self, store: &Store<LosingDisk>) {
        let mut reserve = self.create(&Path::new(ROOT).join(".reserve")).unwrap();
        self.append(&mut reserve, &[Bytes::from_static(&[0; 100])]).unwrap();
        *store.reserve_is_whole.lock().unwrap() = true;
        self.state().trouble = Trouble::FullWhile("/srv/pool/.reserve");
    }

    /// Counts a call; `Err` if it is to fail.
    fn call(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        let call = state.calls;
        state.calls += 1;
        match state.trouble {
            Trouble::At(at, errno) if at == call => Err(errno.into()),
            Trouble::DeathAt(at) if at <= call => Err(Errno::IO.into()),
            _ => Ok(state),
        }
    }

    fn sync_path(&self, at: impl FnOnce(&State) -> io::Result<usize>) -> io::Result<()> {
        match self.call() {
            Ok(mut state) => {
                let at = at(&state)?;
                state.sync_node(at, true);
                Ok(())
            }
            Err(error) => {
                let mut state = self.state();
                let at = at(&state)?;
                if !matches!(state.trouble, Trouble::DeathAt(_)) {
                    state.sync_node(at, false);
                }
                Err(error)
            }
        }
    }
}

impl Disk for LosingDisk {
    type File = usize;

    fn create(&self, path: &Path) -> io::Result<usize> {
        self.call()?.add(path, Node::File { bytes: Twice::default(), given_up: false })
    }

    fn append(&self, file: &mut usize, parts: &[Bytes]) -> io::Result<()> {
        let mut state = self.call()?;
        if let Trouble::FullWhile(path) = state.trouble
            && state.bytes(Path::new(path)).is_ok_and(|reserve| !reserve.is_empty())
        {
            return Err(Errno::NOSPC.into());
        }
        parts.iter().for_each(|part| state.file(*file).0.seen.extend_from_slice(part));
        Ok(())
    }

    fn sync(&self, file: &mut usize) -> io::Result<()> {
        self.sync_path(|_| Ok(*file))
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.call()?;
        let at = state.find(from)?;
        state.insert(to, at)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.call()?;
        let at = state.find(from)?;
        state.remove(from)?;
        let _ = state.remove(to);
        state.insert(to, at)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        let mut state = self.call()?;
        let at = state.find(path)?;
        match state.nodes[at] {
            Node::File { .. } => state.remove(path),
            Node::Folder { .. } => Err(Errno::ISDIR.into()),
        }
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        self.call()?.add(path, new_folder()).map(|_| ())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.call()?;
        let at = state.find(path)?;
        match &state.nodes[at] {
            Node::Folder { names, .. } if names.seen.is_empty() => state.remove(path),
            _ => Err(Errno::NOTEMPTY.into()),
        }
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.sync_path(|state| state.find(path))
    }

    fn sync_all(&self, _: &Path) -> io::Result<()> {
        let mut state = self.call()?;
        (0..state.nodes.len()).for_each(|at| state.sync_node(at, true));
        Ok(())
    }

    fn truncate(&self, path: &Path) -> io::Result<()> {
        let mut state = self.call()?;
        let at = state.find(path)?;
        state.file(at).0.seen.clear();
        Ok(())
    }

    fn length(&self, path: &Path) -> io::Result<Option<u64>> {
        let state = self.call()?;
        match state.bytes(path) {
            Ok(bytes) => Ok(Some(bytes.len() as u64)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn holds(&self, path: &Path, parts: &[Bytes]) -> io::Result<bool> {
        Ok(*self.call()?.bytes(path)? == parts.concat())
    }

    fn is_dir(&self, path: &Path) -> bool {
        let state = self.state();
        state.find(path).is_ok_and(|at| matches!(state.nodes[at], Node::Folder { .. }))
    }

    fn sweep(&self, dir: &Path, prefix: &str) -> io::Result<u64> {
        let mut state = self.call()?;
        let at = state.find(dir)?;
        let Node::Folder { names, .. } = &mut state.nodes[at] else { return Err(Errno::NOTDIR.into()) };
        let before = names.seen.len();
        names.seen.retain(|name, _| !name.starts_with(prefix));
        Ok((before - names.seen.len()) as u64)
    }

    fn space(&self, _: &Path) -> io::Result<Space> {
        drop(self.call()?);
        // Too little for a reserve file of megabytes, which only one test wants.
        Ok(Space { total_bytes: 4 << 20, available_bytes: 2 << 20 })
    }
}

pub(super) const ROOT: &str = "/srv/pool";

#[derive(Clone, Copy, Debug)]
enum Step {
    Put(&'static str),
    Delete(&'static str),
}
use Step::{Delete, Put};

/// New folders, one used twice, one that holds folders and files, a retry, deletes.
const STEPS: [Step; 9] = [
    Put("a"),
    Put("v/1/x"),
    Put("v/1/y"),
    Put("v/2/x"),
    Put("v/1/x"),
    Delete("v/1/x"),
    Put("v/z"),
    Delete("a"),
    Put("w/1/2/3"),
];

/// The one content that a name ever has.
fn contents(object: &str) -> Vec<Bytes> {
    vec![Bytes::from(format!("contents of {object}: ")), Bytes::from(vec![7; 5000])]
}

pub(super) fn open(disk: &LosingDisk) -> Result<Store<LosingDisk>, BackendError> {
    Store::open(disk.clone(), ROOT.into(), 0, IfUnmarked::Make)
}

fn run(store: &Store<LosingDisk>, step: Step) -> Result<(), BackendError> {
    match step {
        Put(object) => store.put(&ObjectName::new(object).unwrap(), &contents(object), Urgency::Normal),
        Delete(object) => store.delete(&ObjectName::new(object).unwrap()),
    }
}

/// What must be: `Some(true)` there, `Some(false)` not there, `None` either.
type Expected = BTreeMap<&'static str, Option<bool>>;

fn note(expected: &mut Expected, step: Step, result: &Result<(), BackendError>) {
    let (object, is_there) = match step {
        Put(object) => (object, true),
        Delete(object) => (object, false),
    };
    let known = result.is_ok().then_some(is_there);
    // A put that fails may take back nothing that was there before it.
    let before = expected.get(object).copied().flatten();
    let after = known.or(before.filter(|before| *before == is_there));
    expected.insert(object, after);
}

fn check_against(disk: &LosingDisk, expected: &Expected, context: &str) {
    for (object, expected) in expected {
        let state = disk.state();
        match state.bytes(&Path::new(ROOT).join(object)) {
            Ok(found) => {
                assert!(*expected != Some(false), "{context}: {object} is back");
                assert!(*found == contents(object).concat(), "{context}: {object} is there with other bytes");
            }
            Err(_) => assert!(*expected != Some(true), "{context}: {object} is lost"),
        }
    }
}

/// Every way to lose power that is tried: nothing unsynced survives, all of it, or some of it.
fn check_power_losses(disk: &LosingDisk, expected: &Expected, context: &str) {
    for way in 0..6u64 {
        let disk = disk.fork();
        disk.state().trouble = Trouble::None;
        let mut seed = way.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        disk.state().lose_power(|| match way {
            0 => false,
            1 => true,
            _ => {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                seed >> 63 == 1
            }
        });
        let context = format!("{context}, power lost in way {way}");
        check_against(&disk, expected, &context);
        // It opens again by itself, takes everything again, and keeps it.
        let store = open(&disk).unwrap();
        let mut expected = expected.clone();
        for step in STEPS {
            let result = run(&store, step);
            assert!(result.is_ok(), "{context}: {step:?} afterwards: {result:?}");
            note(&mut expected, step, &result);
        }
        disk.state().lose_power(|| false);
        check_against(&disk, &expected, &context);
    }
}

pub(super) fn new_disk() -> LosingDisk {
    let disk = LosingDisk::new();
    disk.make_dir(Path::new("/srv")).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    disk.state().calls = 0;
    disk
}

/// Runs the steps with trouble; returns the calls made.
fn run_all(disk: &LosingDisk, trouble: Trouble, expected: &mut Expected) -> u64 {
    disk.state().trouble = trouble;
    let mut store = open(disk);
    for step in STEPS {
        if store.is_err() && !matches!(trouble, Trouble::DeathAt(_)) {
            store = open(disk);
        }
        let Ok(store) = &store else { break };
        let mut result = run(store, step);
        note(expected, step, &result);
        if result.is_err() && !matches!(trouble, Trouble::DeathAt(_)) {
            // A caller tries again.
            result = run(store, step);
            assert!(result.is_ok(), "{step:?} again: {result:?}");
            note(expected, step, &result);
        }
    }
    disk.state().calls
}

fn calls_without_trouble() -> u64 {
    let calls = run_all(&new_disk(), Trouble::None, &mut Expected::new());
    assert!(calls > 80, "{calls}");
    calls
}

#[test]
fn power_lost_at_any_call_loses_nothing_answered() {
    for at in 0..=calls_without_trouble() {
        let (disk, mut expected) = (new_disk(), Expected::new());
        run_all(&disk, Trouble::DeathAt(at), &mut expected);
        check_power_losses(&disk, &expected, &format!("call {at}"));
    }
}

#[test]
fn a_call_that_fails_anywhere_is_retried_and_loses_nothing() {
    for errno in [Errno::IO, Errno::ROFS, Errno::NOSPC] {
        for at in 0..calls_without_trouble() {
            let (disk, mut expected) = (new_disk(), Expected::new());
            run_all(&disk, Trouble::At(at, errno), &mut expected);
            check_power_losses(&disk, &expected, &format!("call {at} fails with {errno}"));
        }
    }
}

#[test]
fn what_the_next_process_reads_stays() {
    for at in 0..=calls_without_trouble() {
        let (disk, mut expected) = (new_disk(), Expected::new());
        run_all(&disk, Trouble::DeathAt(at), &mut expected);
        disk.state().trouble = Trouble::None;
        if open(&disk).is_err() {
            continue;
        }
        for (object, known) in &mut expected {
            *known = Some(disk.state().bytes(&Path::new(ROOT).join(object)).is_ok());
        }
        check_power_losses(&disk, &expected, &format!("death at call {at}, opened again"));
    }
}

#[test]
fn a_full_device_can_be_emptied() {
    let disk = new_disk();
    let store = open(&disk).unwrap();
    run(&store, Put("v/1/x")).unwrap();
    disk.fill_up(&store);

    let object = ObjectName::new("v/1/tombstone").unwrap();
    let refused = store.put(&object, &contents("v/1/tombstone"), Urgency::Normal).unwrap_err();
    assert!(matches!(refused, BackendError::NoSpace { .. }), "{refused}");
    store.put(&object, &contents("v/1/tombstone"), Urgency::Reserve).unwrap();
    check_power_losses(&disk, &[("v/1/tombstone", Some(true)), ("v/1/x", None)].into(), "full");
}
