use super::Request;
use crate::Problem;
use ovs_units::VdiskId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A vDisk as a block device of this host's kernel, made by ovsd-edge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Device {
    /// The vDisk.
    pub vdisk: VdiskId,
    /// `/dev/nbd3`.
    pub path: PathBuf,
    /// Which use of it: another number when the kernel gives the same path to another vDisk.
    pub sequence: u64,
    /// Its size, the vDisk's.
    pub size_bytes: u64,
    /// It was there before this request: somebody may have it mounted.
    pub was_there: bool,
}

/// A device to be made; the one that is there is given as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PutDevice {
    /// The smallest unit of I/O: 512, 1024, 2048 or 4096.
    pub block_size_bytes: u32,
}

/// The kernel devices of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceList {
    /// Why no device can be made here, for people; nothing when they can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unavailable: Option<String>,
    /// Those that are there.
    pub items: Vec<Device>,
}

impl Request for PutDevice {
    fn check(&self) -> Result<(), Problem> {
        match self.block_size_bytes {
            512 | 1024 | 2048 | 4096 => Ok(()),
            given => {
                Err(Problem::field("block_size_bytes", given.to_string(), "512, 1024, 2048 or 4096 bytes"))
            }
        }
    }
}
