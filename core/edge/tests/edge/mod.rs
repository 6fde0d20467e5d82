//! ovsd-edge as a child process, with a fake ovsd beside it.

use crate::fake::{Ovsd, VPOOL, World};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs::{self, OpenOptions},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

pub const PATIENCE: Duration = Duration::from_secs(10);

/// False, with a word on standard error, where this machine has no FUSE for us.
pub fn can_mount() -> bool {
    let fuse = OpenOptions::new().read(true).write(true).open("/dev/fuse");
    match (fuse, rustix::process::geteuid().is_root()) {
        (Ok(_), true) => true,
        (fuse, is_root) => {
            eprintln!("skipped: /dev/fuse: {:?}, root: {is_root}", fuse.err());
            false
        }
    }
}

/// A mounted vPool. Dropping it ends everything.
pub struct Edge {
    pub world: World,
    options: Vec<String>,
    ovsd: Option<Ovsd>,
    child: Option<Child>,
    root: TempDir,
}

impl Edge {
    pub fn start() -> Edge {
        Edge::start_with(&[])
    }

    pub fn start_with(options: &[&str]) -> Edge {
        let root = tempfile::tempdir().unwrap();
        let world = World::new(root.path());
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let mut edge = Edge { ovsd: Some(world.start()), world, options, child: None, root };
        edge.restart();
        edge
    }

    pub fn dir(&self) -> PathBuf {
        self.root.path().join("mnt/ovs").join(VPOOL)
    }

    pub fn run_dir(&self) -> PathBuf {
        self.root.path().join("run/ovs")
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.root.path().join("log")).unwrap_or_default()
    }

    pub fn restart(&mut self) {
        let log = OpenOptions::new().create(true).append(true).open(self.root.path().join("log")).unwrap();
        self.child = Some(self.command().stderr(log).stdin(Stdio::null()).spawn().unwrap());
        self.eventually("a mount", || self.is_mounted());
    }

    pub fn start_another(&self) -> Output {
        self.command().output().unwrap()
    }

    pub fn kill_ovsd(&mut self) {
        if let Some(ovsd) = self.ovsd.take() {
            ovsd.kill();
        }
    }

    pub fn start_ovsd(&mut self) {
        self.ovsd = Some(self.world.start());
    }

    /// As `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn terminate(&mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        child.wait().unwrap()
    }

    /// Comes back when it is so. Another process tells nobody: it is looked at again and again.
    #[track_caller]
    pub fn eventually(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let since = now();
        while !is_so() {
            assert!(since.elapsed() < PATIENCE, "{what} did not come\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ovsd-edge"));
        command.arg("--root").arg(self.root.path()).args(&self.options).env("OVS_LOG", "debug,fuser=info");
        command
    }

    fn is_mounted(&self) -> bool {
        // statfs(2) always asks the file system, so a dead predecessor's mount does not count.
        const FUSE_SUPER_MAGIC: i64 = 0x6573_5546;
        rustix::fs::statfs(self.dir()).is_ok_and(|space| space.f_type == FUSE_SUPER_MAGIC)
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        self.kill();
        let flags = rustix::mount::UnmountFlags::DETACH;
        while rustix::mount::unmount(self.dir(), flags).is_ok() {}
    }
}

#[expect(clippy::disallowed_methods, reason = "a test's own time limit")]
fn now() -> Instant {
    Instant::now()
}
