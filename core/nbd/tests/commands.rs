//! Every command, as raw messages: what comes back, and what the device was asked.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use ovs_nbd::{NbdError, ZeroKind, proto::handshake::InfoReply};
use ovs_units::ByteCount;
use support::{Deed, Got, Raw, SIZE, World, local, request, write};

const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const ZEROES: u16 = 6;
const STATUS: u16 = 7;

async fn read(raw: &mut Raw, offset: u64, length: u32, flags: u16) -> Vec<Got> {
    raw.send(&request(READ, flags, 9, offset, length)).await;
    let mut got = Vec::new();
    loop {
        let reply = raw.reply().await;
        let done = matches!(reply, Got::Simple { .. } | Got::Chunk { flags: 1, .. });
        got.push(reply);
        if done {
            return got;
        }
    }
}

fn data(flags: u16, offset: u64, bytes: &[u8]) -> Got {
    let payload = [&offset.to_be_bytes()[..], bytes].concat();
    Got::Chunk { flags, kind: 1, cookie: 9, payload }
}

fn hole(flags: u16, offset: u64, length: u32) -> Got {
    let payload = [&offset.to_be_bytes()[..], &length.to_be_bytes()].concat();
    Got::Chunk { flags, kind: 2, cookie: 9, payload }
}

#[test]
fn what_is_written_is_read_at_any_alignment_and_length() {
    local(async {
        let world = World::new();
        let (mut raw, _) = world.transmitting().await;
        // From a byte to more than the input buffer; 70000 once waited for ever for bytes that were there.
        for (cookie, length) in
            [1, 27, 511, 512, 513, 4096, 32 << 10, (32 << 10) + 1, 70_000, 300_000].into_iter().enumerate()
        {
            let content: Vec<u8> = (0..length).map(|at| (at % 251) as u8 + 1).collect();
            raw.send(&write(cookie as u64, 1001, &content)).await;
            assert_eq!(raw.reply().await, Got::Simple { errno: 0, cookie: cookie as u64 });
            assert_eq!(read(&mut raw, 1001, length as u32, 0).await, [data(1, 1001, &content)]);
        }
    });
}

#[test]
fn holes_travel_as_holes_unless_fragments_are_refused() {
    local(async {
        let world = World::new();
        world.disk.sparse.set(true);
        world.disk.bytes.borrow_mut()[4096..8192].fill(7);
        let (mut raw, _) = world.transmitting().await;
        let seven = [7; 4096];
        let all = read(&mut raw, 0, 16384, 0).await;
        assert_eq!(all, [hole(0, 0, 4096), data(0, 4096, &seven), hole(1, 8192, 8192)]);
        let whole = [&[0; 4096][..], &seven, &[0; 8192]].concat();
        assert_eq!(read(&mut raw, 0, 16384, 4).await, [data(1, 0, &whole)]);
        assert_eq!(read(&mut raw, 8192, 4096, 4).await, [hole(1, 8192, 4096)]);
    });
}

#[test]
fn a_client_without_structured_replies_gets_simple_ones() {
    local(async {
        let world = World::new();
        world.disk.sparse.set(true);
        world.disk.bytes.borrow_mut()[4096..8192].fill(7);
        let (mut raw, _) = world.connect();
        raw.greet().await;
        raw.go("disk").await.unwrap();
        raw.send(&request(READ, 0, 9, 4000, 4200)).await;
        assert_eq!(raw.reply().await, Got::Simple { errno: 0, cookie: 9 });
        assert_eq!(raw.take(4200).await, [&[0; 96][..], &[7; 4096], &[0; 8]].concat());
        raw.send(&request(READ, 0, 9, SIZE, 1)).await;
        assert_eq!(raw.reply().await, Got::Simple { errno: 22, cookie: 9 });
        raw.send(&request(STATUS, 0, 9, 0, 4096)).await;
        assert_eq!(raw.reply().await, Got::Simple { errno: 22, cookie: 9 });
    });
}

#[test]
fn fua_and_kinds_reach_the_device() {
    async fn check(message: Vec<u8>, expected: Deed) {
        let world = World::new();
        let (mut raw, _) = world.transmitting().await;
        raw.send(&message).await;
        assert_eq!(raw.errno(5).await, 0);
        assert_eq!(*world.disk.deeds.borrow(), [expected]);
    }
    local(async {
        let zero = |fua, kind| Deed::Zero { offset: 10, length: 20, fua, kind };
        let zeroes = |no_hole, fast| ZeroKind::Zeroes { no_hole, fast };
        let mut fua_write = request(WRITE, 1, 5, 3, 2);
        fua_write.extend([8, 9]);
        check(fua_write, Deed::Write { offset: 3, first: 8, length: 2, fua: true }).await;
        check(write(5, 3, &[8]), Deed::Write { offset: 3, first: 8, length: 1, fua: false }).await;
        check(request(TRIM, 0, 5, 10, 20), zero(false, ZeroKind::Trim)).await;
        check(request(TRIM, 1, 5, 10, 20), zero(true, ZeroKind::Trim)).await;
        check(request(ZEROES, 0, 5, 10, 20), zero(false, zeroes(false, false))).await;
        check(request(ZEROES, 1 | 2, 5, 10, 20), zero(true, zeroes(true, false))).await;
        check(request(ZEROES, 1 | 16, 5, 10, 20), zero(true, zeroes(false, true))).await;
        check(request(FLUSH, 0, 5, 0, 0), Deed::Flush).await;
        check(request(FLUSH, 1, 5, 0, 0), Deed::Flush).await;
        check(request(CACHE, 0, 5, 10, 20), Deed::Cache { offset: 10, length: 20 }).await;
    });
}

#[test]
fn refusals_have_the_numbers_of_the_specification() {
    local(async {
        let world = World::new();
        let (mut raw, _) = world.transmitting().await;
        let cases = [
            ("read past the end", request(READ, 0, 5, SIZE - 1, 2), 22),
            ("read far past the end", request(READ, 0, 5, u64::MAX, u32::MAX), 22),
            ("read too large", request(READ, 0, 5, 0, (32 << 20) + 1), 22),
            ("write past the end", write(5, SIZE - 1, &[1, 2]), 28),
            ("write at the end of everything", write(5, u64::MAX, &[1]), 28),
            ("large write past the end", write(5, SIZE - 1, &[1; 100_000]), 28),
            ("zeroes past the end", request(ZEROES, 0, 5, SIZE, 1), 28),
            ("trim past the end", request(TRIM, 0, 5, 0, u32::MAX), 22),
            ("cache past the end", request(CACHE, 0, 5, SIZE, 1), 22),
            ("status past the end", request(STATUS, 0, 5, SIZE, 1), 22),
            ("status of nothing", request(STATUS, 0, 5, 0, 0), 22),
            ("unknown command", request(8, 0, 5, 0, 0), 22),
            ("unknown command", request(u16::MAX, 0, 5, 0, u32::MAX), 22),
            ("unknown flag", request(READ, 1 << 9, 5, 0, 1), 22),
            ("a flag of another command", request(TRIM, 8, 5, 0, 1), 22),
            ("nothing read", request(READ, 0, 5, 0, 0), 0),
            ("nothing written", write(5, SIZE, &[]), 0),
            ("nothing zeroed", request(ZEROES, 0, 5, 0, 0), 0),
        ];
        for (name, message, expected) in cases {
            raw.send(&message).await;
            let errno = match raw.reply().await {
                Got::Simple { errno, .. } => errno,
                Got::Chunk { kind: 0, .. } => 0,
                Got::Chunk { payload, .. } => u32::from_be_bytes(payload[..4].try_into().unwrap()),
            };
            assert_eq!(errno, expected, "{name}");
        }
        assert!(world.disk.deeds.borrow().is_empty(), "the device was asked");
        // The connection is as good as before.
        raw.send(&write(6, 0, &[1])).await;
        assert_eq!(raw.errno(6).await, 0);
    });
}

#[test]
fn a_write_too_large_to_be_read_is_passed_over() {
    local(async {
        let world = World::new();
        let (raw, _) = world.transmitting().await;
        let length = (32 << 20) + 1;
        let (mut from, mut to) = raw.stream.into_split();
        let sending = async move {
            use tokio::io::AsyncWriteExt as _;
            to.write_all(&request(WRITE, 0, 5, 0, length)).await.unwrap();
            to.write_all(&vec![1; length as usize]).await.unwrap();
            to
        };
        let reading = async move {
            use tokio::io::AsyncReadExt as _;
            let mut head = [0; 20];
            from.read_exact(&mut head).await.unwrap();
            head
        };
        let (_to, head) = tokio::join!(sending, reading);
        assert_eq!(head[..8], [0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 1]);
        assert!(world.disk.deeds.borrow().is_empty());
    });
}

#[test]
fn a_read_only_disk_is_not_written() {
    local(async {
        let world = World::new();
        world.disk.read_only.set(true);
        let (mut raw, _) = world.connect();
        raw.greet().await;
        let InfoReply::Export { size, flags } = raw.go("").await.unwrap()[0] else {
            panic!("no export info")
        };
        assert_eq!((size, flags & 2), (ByteCount(SIZE), 2));
        for message in [write(5, 0, &[1]), request(TRIM, 0, 5, 0, 1), request(ZEROES, 0, 5, 0, 1)] {
            raw.send(&message).await;
            assert_eq!(raw.errno(5).await, 1);
        }
        raw.send(&request(FLUSH, 0, 5, 0, 0)).await;
        assert_eq!(raw.errno(5).await, 0);
    });
}

#[test]
fn device_errors_become_numbers_and_texts() {
    async fn check(error: NbdError, expected: u32) {
        let world = World::new();
        let (mut raw, _) = world.transmitting().await;
        *world.disk.fail.borrow_mut() = Some(error);
        raw.send(&request(READ, 0, 5, 0, 1)).await;
        let Got::Chunk { flags: 1, kind: 0x8001, payload, .. } = raw.reply().await else {
            panic!("no error")
        };
        assert_eq!(payload, [&expected.to_be_bytes()[..], &[0, 3], b"why"].concat());
    }
    local(async {
        check(NbdError::Io("why".into()), 5).await;
        check(NbdError::NoSpace("why".into()), 28).await;
        check(NbdError::NotPermitted("why".into()), 1).await;
        check(NbdError::NotSupported("why".into()), 95).await;
        check(NbdError::Shutdown("why".into()), 108).await;
    });
}

#[test]
fn block_status_tells_holes_and_data() {
    async fn check(flags: u16, offset: u64, length: u32, expected: &[(u32, u32)]) {
        let world = World::new();
        world.disk.bytes.borrow_mut()[4096..8192].fill(7);
        let (mut raw, _) = world.transmitting().await;
        raw.send(&request(STATUS, flags, 5, offset, length)).await;
        let Got::Chunk { flags: 1, kind: 5, payload, .. } = raw.reply().await else { panic!("no status") };
        let extents = expected.iter().flat_map(|(length, state)| [length.to_be_bytes(), state.to_be_bytes()]);
        assert_eq!(payload, [&[0, 0, 0, 1][..], &extents.collect::<Vec<_>>().concat()].concat());
    }
    local(async {
        check(0, 0, SIZE as u32, &[(4096, 3), (4096, 0), (SIZE as u32 - 8192, 3)]).await;
        check(8, 0, SIZE as u32, &[(4096, 3)]).await;
        check(0, 4096, 100, &[(100, 0)]).await;
    });
}

#[test]
fn disc_ends_the_connection_after_what_was_asked_before() {
    local(async {
        let world = World::new();
        let (mut raw, task) = world.transmitting().await;
        let mut messages = write(1, 0, &[1]);
        messages.extend(request(2, 0, 2, 0, 0));
        messages.extend(write(3, 0, &[3]));
        raw.send(&messages).await;
        assert_eq!(raw.errno(1).await, 0);
        assert!(raw.is_hung_up().await);
        task.await.unwrap();
        let first = Deed::Write { offset: 0, first: 1, length: 1, fua: false };
        assert_eq!(*world.disk.deeds.borrow(), [first, Deed::Released]);
    });
}
