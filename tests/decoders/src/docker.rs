//! Docker's JSON and options, and what the plugin and the edge read from their host.

use crate::{Family, first_line, json};
use ovs_docker::{
    filesystem_options::{MkfsOptions, MountOptions},
    host::Contents,
    message::Request,
    options::{Fstype, VolumeOptions},
    record::Record,
};
use ovs_units::{Name, VdiskId};
use std::{collections::BTreeMap, ffi::OsStr, os::unix::ffi::OsStrExt};
use uuid::Uuid;

const VDISK: VdiskId = VdiskId(Uuid::from_u128(7));

/// The path and the body of a request; a state file; mount tables; superblocks; names of files below a mount.
pub(crate) const DOCKER: Family = Family {
    name: "docker",
    check: |bytes| {
        let (path, body) = first_line(bytes);
        let request = std::str::from_utf8(path).ok().and_then(|path| Request::parse(path, body).ok());
        if let Some(Request::Create(_, opts)) = &request {
            options(opts);
        }
        let opts: Option<BTreeMap<String, String>> = serde_json::from_slice(bytes).ok();
        let taken = [
            request.is_some(),
            opts.is_some_and(|opts| options(&opts)),
            filesystem_options(bytes),
            record(bytes),
            mounts(bytes),
            superblock(bytes),
            file_name(bytes),
        ];
        taken.contains(&true)
    },
    seeds: || {
        let mut ext4 = vec![0; 4096];
        ext4[1024 + 0x38..][..2].copy_from_slice(&[0x53, 0xef]);
        ext4[1024 + 4..][..4].copy_from_slice(&7_u32.to_le_bytes());
        let mut xfs = vec![0; 4096];
        xfs[..4].copy_from_slice(b"XFSB");
        xfs[4..8].copy_from_slice(&4096_u32.to_be_bytes());
        xfs[102..104].copy_from_slice(&512_u16.to_be_bytes());
        let mut seeds = vec![ext4, xfs];
        seeds.extend(TEXTS.iter().map(|text| text.as_bytes().to_vec()));
        seeds
    },
    memory_bytes: 128 << 10,
    memory_per_byte: 64,
};

/// Options are remembered as text, and are the same when they are read from it.
fn options(opts: &BTreeMap<String, String>) -> bool {
    match VolumeOptions::parse(opts) {
        Ok(options) => {
            let text = options.remembered();
            let again = VolumeOptions::from_remembered(&text);
            assert_eq!(again.as_ref(), Ok(&options), "remembered as {text}");
            true
        }
        Err(error) => {
            assert!(error.to_string().len() < 4096, "what was given may be long: {error}");
            false
        }
    }
}

fn filesystem_options(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let mut taken = false;
    for fstype in [Fstype::Ext4, Fstype::Xfs] {
        if let Ok(options) = MkfsOptions::parse(fstype, text) {
            assert_eq!(MkfsOptions::parse(fstype, &options.to_string()), Ok(options.clone()));
            // They go to mkfs as words of their own.
            assert!(options.pairs().all(|(_, value)| !value.starts_with('-') && !value.contains(' ')));
            taken = true;
        }
        if let Ok(options) = MountOptions::parse(Some(fstype), text) {
            assert_eq!(MountOptions::parse(Some(fstype), &options.to_string()), Ok(options));
            taken = true;
        }
    }
    taken
}

fn record(bytes: &[u8]) -> bool {
    json::<Record>(bytes);
    let Ok(record) = Record::decode(bytes, VDISK) else { return false };
    let again = record.encode().ok().and_then(|bytes| Record::decode(&bytes, VDISK).ok());
    assert_eq!(again, Some(record));
    true
}

/// Two readers of the same lines agree where they both look.
fn mounts(bytes: &[u8]) -> bool {
    let (edge, docker) = (ovs_edge::decoders::mount_table(bytes), ovs_docker::decoders::mount_table(bytes));
    let lines = bytes.split(|byte| *byte == b'\n').count();
    assert!(edge.len() <= lines && docker.len() <= lines);
    !edge.is_empty()
}

fn superblock(bytes: &[u8]) -> bool {
    let mut head = [0; ovs_docker::decoders::HEAD_BYTES];
    let length = bytes.len().min(head.len());
    head[..length].copy_from_slice(&bytes[..length]);
    let contents = Contents::of(&head);
    assert!([512, 4096].contains(&contents.block_size_bytes()));
    matches!(contents, Contents::FileSystem { .. })
}

/// FUSE: every vDisk has one file name, and every file name at most one vDisk.
fn file_name(bytes: &[u8]) -> bool {
    use ovs_edge::decoders::{FILE_NAME_LENGTH_MAX, FileName, file_name};
    match FileName::parse(OsStr::from_bytes(bytes)) {
        FileName::Vdisk(name) => {
            assert_eq!(file_name(&name).as_bytes(), bytes);
            assert!(bytes.len() <= FILE_NAME_LENGTH_MAX as usize && Name::new(name.as_str()).is_ok());
            true
        }
        FileName::NoVdiskName | FileName::Other => false,
    }
}

const TEXTS: [&str; 13] = [
    "/Plugin.Activate\n",
    "/VolumeDriver.Create\n{\"Name\":\"v1\",\"Opts\":{\"size\":\"1G\",\"fstype\":\"xfs\"}}",
    "/VolumeDriver.Mount\n{\"Name\":\"v1\",\"ID\":\"ab\"}",
    "/VolumeDriver.Get\n{\"Name\":\"v1\"}",
    r#"{"size":"1GiB","fstype":"xfs","mkfs_opts":"-L data","mount_opts":"noatime,nodiscard","uid":"70","gid":"070","mode":"700","vpool":"fast","label":"team=db,tier=1"}"#,
    r#"{"from":"p/v","snapshot":"s","size":"1.5GiB"}"#,
    r#"{"template":"p/t","mount_opts":"commit=30"}"#,
    "-m 1 -i 16384",
    "noatime,logbufs=8",
    r#"{"version":1,"vdisk":"00000000-0000-0000-0000-000000000007","vpool":"default","name":"v1","directory":"data","file":"/mnt/ovs/default/v1.raw","boot_id":"b","device":{"path":"/dev/loop7","sequence":12},"is_ready":true,"refs":{"counts":{"a":1},"tombstones":{"a":1}}}"#,
    "22 1 259:1 / / rw,relatime shared:1 - ext4 /dev/root rw\n41 22 0:35 / /r/a\\040b\\134c rw shared:9 master:2 - fuse ovs rw\n",
    "x.raw",
    "pg-data_1.2.raw.raw",
];
