//! The client of ovsd-edge's own small RPC: kernel devices.
//!
//! ```text
//!  put ─▶ the vDisk's device, kept for a while by ovsd-edge ─▶ open it ─▶ release ─▶ it goes with its last user
//! ```
//!
//! Same words, same problems, same protocol as ovsd's; another socket, since devices are a host's and not the store's.

use super::{ApiError, Call, Client};
use crate::{Device, DeviceList, Method, NoContent, PutDevice};
use ovs_units::VdiskId;
use std::path::Path;

/// A client of one ovsd-edge.
#[derive(Debug, Clone)]
pub struct EdgeClient(Client);

impl EdgeClient {
    /// A client of the ovsd-edge that listens on `socket` (see [`Paths::edge_socket`](crate::Paths::edge_socket)).
    pub fn new(socket: impl AsRef<Path>) -> EdgeClient {
        EdgeClient(Client::new(socket))
    }

    /// The devices there are, and whether there can be any.
    pub async fn list_devices(&self) -> Result<DeviceList, ApiError> {
        Call::new(&self.0, "list_devices", Method::GET, "/v1/devices".to_owned()).reply().await
    }

    /// The vDisk's device: the one that is there, or a new one. It stays for half a minute though nobody opens it.
    pub async fn put_device(&self, vdisk: VdiskId, put: &PutDevice) -> Result<Device, ApiError> {
        let mut call = Call::new(&self.0, "put_device", Method::PUT, path(vdisk));
        call.body(put)?;
        call.reply().await
    }

    /// From now on the device stays only as long as somebody has it open or mounted. Not there is as good.
    pub async fn release_device(&self, vdisk: VdiskId) -> Result<NoContent, ApiError> {
        Call::new(&self.0, "release_device", Method::DELETE, path(vdisk)).reply().await
    }
}

fn path(vdisk: VdiskId) -> String {
    format!("/v1/devices/{vdisk}")
}
