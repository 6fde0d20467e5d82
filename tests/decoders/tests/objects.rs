//! What it takes to read an object from drives: memory for what comes, whatever a header claims.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed case")]

mod memory;

use memory::most_bytes;
use ovs_backend::coded::{CodedBackend, Drive, Duty, FRAME_BYTES, Policy, Preset, Work};
use ovs_backend::{Backend, BackendError, MemoryBackend, ObjectName, Urgency};
use ovs_format::fragment::{HEADER_BYTES, Header, OBJECT_BYTES_MAX};
use std::rc::Rc;
use uuid::Uuid;

/// Cut up as small as can be.
fn over(drive: &Rc<MemoryBackend>) -> CodedBackend {
    let drive = Drive {
        id: Uuid::from_u128(1),
        node: String::new(),
        site: String::new(),
        weight: 1,
        duty: Duty::Serving,
        backend: drive.clone(),
    };
    let preset = Preset::new(vec![Policy::new(1, 0, 1, 1).unwrap()]).unwrap();
    CodedBackend::new(vec![drive], preset.with_fragments_of(FRAME_BYTES).unwrap(), Work::Here).unwrap()
}

fn name() -> ObjectName {
    ObjectName::new("v/s/1").unwrap()
}

fn local<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, work)
}

fn put(drive: &Rc<MemoryBackend>, length: usize) {
    let put = async { over(drive).put(&name(), vec![vec![7; length].into()], Urgency::Normal).await };
    local(put).unwrap();
}

/// Who can write to a drive can claim what he likes.
#[test]
fn no_room_is_made_for_what_a_header_claims() {
    let drive = Rc::default();
    put(&drive, 1);
    let fragment = drive.names().remove(0);
    let mut bytes = drive.bytes(&fragment).unwrap().to_vec();
    let mut header = Header::decode(&bytes).unwrap();
    header.geometry.object_bytes = OBJECT_BYTES_MAX;
    bytes[..HEADER_BYTES].copy_from_slice(&header.encode());
    drive.damage(&fragment, Some(bytes.into()));
    let (read, most) = most_bytes(|| local(over(&drive).get(&name())));
    assert!(matches!(read, Err(BackendError::Lost { .. })), "{read:?}");
    assert!(most < 1 << 20, "{most} bytes");
}

#[test]
fn an_object_is_in_memory_once() {
    let drive = Rc::default();
    let length = 512 * FRAME_BYTES as usize;
    put(&drive, length);
    let (read, most) = most_bytes(|| local(over(&drive).get(&name())));
    assert_eq!(read.unwrap().len(), length);
    assert!(most < length * 5 / 4, "{most} bytes for {length}");
}
