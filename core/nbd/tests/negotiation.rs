//! Every option, well-formed and not.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use ovs_nbd::{
    OpenError, ServerOptions,
    proto::{
        handshake::{InfoReply, MetaContextRequest},
        numbers::{option, option_reply},
    },
};
use ovs_units::ByteCount;
use std::{rc::Rc, time::Duration};
use support::{Deed, Got, Raw, SIZE, World, local, request, session, simulated, until};
use tokio::time::Instant;

const UNSUP: u32 = option_reply::ERR_UNSUP;
const POLICY: u32 = option_reply::ERR_POLICY;
const INVALID: u32 = option_reply::ERR_INVALID;
const UNKNOWN: u32 = option_reply::ERR_UNKNOWN;
const SHUTDOWN: u32 = option_reply::ERR_SHUTDOWN;
const TOO_BIG: u32 = option_reply::ERR_TOO_BIG;

fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = Vec::new();
    let queries = queries.iter().map(|query| query.to_string()).collect();
    MetaContextRequest { name: name.into(), queries }.format(&mut data);
    data
}

#[test]
fn options_are_refused_with_their_reason_and_talk_goes_on() {
    local(async {
        let world = World::new();
        let (mut raw, _) = world.connect();
        raw.greet().await;
        let mut long_name = 5000_u32.to_be_bytes().to_vec();
        long_name.resize(5006, b'x');
        let many = contexts("disk", &["base:allocation"; 65]);
        let no_structure = contexts("disk", &["base:allocation"]);
        let mut bad_text = Raw::info_request("disk", &[]);
        bad_text[4] = 0xff;
        let mut nul = Raw::info_request("disk", &[]);
        nul[5] = 0;
        let cases: Vec<(&str, u32, Vec<u8>, u32)> = vec![
            ("unknown", 77, vec![1, 2, 3], UNSUP),
            ("extended headers", 11, vec![], UNSUP),
            ("TLS", option::STARTTLS, vec![], POLICY),
            ("list with data", option::LIST, vec![0], INVALID),
            ("structured replies with data", option::STRUCTURED_REPLY, vec![0], INVALID),
            ("contexts before structured replies", option::SET_META_CONTEXT, no_structure.clone(), INVALID),
            ("contexts before structured replies", option::LIST_META_CONTEXT, no_structure, INVALID),
            ("too many queries", option::SET_META_CONTEXT, many, INVALID),
            ("empty go", option::GO, vec![], INVALID),
            ("truncated go", option::GO, vec![0, 0, 0, 4, b'd'], INVALID),
            ("more infos than are there", option::GO, vec![0, 0, 0, 0, 255, 255], INVALID),
            ("less infos than are there", option::INFO, vec![0, 0, 0, 0, 0, 0, 1], INVALID),
            ("a name of all the memory", option::INFO, vec![255; 6], TOO_BIG),
            ("a name too long", option::GO, long_name, TOO_BIG),
            ("a name that is no text", option::GO, bad_text, INVALID),
            ("a name with a NUL", option::GO, nul, INVALID),
            ("unknown name", option::GO, Raw::info_request("other", &[]), UNKNOWN),
            ("unknown name", option::INFO, Raw::info_request("../../etc/passwd", &[]), UNKNOWN),
            ("an option larger than is read", 77, vec![0; 100_000], TOO_BIG),
        ];
        for (name, option, data, expected) in cases {
            assert_eq!(raw.ask(option, &data).await, Err(expected), "{name}");
        }
        raw.structured().await;
        let many = contexts("disk", &["base:allocation"; 65]);
        assert_eq!(raw.ask(option::SET_META_CONTEXT, &many).await, Err(TOO_BIG), "too many queries");
        let mut cut = contexts("disk", &["base:allocation"]);
        cut.pop();
        assert_eq!(raw.ask(option::SET_META_CONTEXT, &cut).await, Err(INVALID), "truncated query");
        let unknown = contexts("other", &[]);
        assert_eq!(raw.ask(option::LIST_META_CONTEXT, &unknown).await, Err(UNKNOWN));
        let two = [session(1).to_string(), session(2).to_string()];
        let two = contexts("disk", &[&two[0], &two[1]]);
        assert_eq!(raw.ask(option::SET_META_CONTEXT, &two).await, Err(INVALID), "two sessions");
        raw.go("disk").await.unwrap();
        assert_eq!(world.server.stats().dropped, 0);
    });
}

#[test]
fn what_cannot_be_answered_ends_the_connection() {
    async fn check(name: &str, greet: bool, bytes: &[u8]) {
        let world = World::new();
        let (mut raw, task) = world.connect();
        if greet {
            raw.greet().await;
        }
        raw.try_send(bytes).await;
        assert!(raw.is_hung_up().await, "{name}");
        task.await.unwrap();
        let stats = world.server.stats();
        assert_eq!((stats.dropped, stats.connections, stats.negotiating), (1, 0, 0), "{name}");
    }
    local(async {
        let option = |option: u32, length: u32| {
            [&b"IHAVEOPT"[..], &option.to_be_bytes(), &length.to_be_bytes()].concat()
        };
        check("unknown client flags", false, &[0, 0, 0, 7]).await;
        check("bad magic", true, &[b'x'; 16]).await;
        check("an option of 4 GiB", true, &option(option::GO, u32::MAX)).await;
        check("a name of 4 GiB", true, &option(option::EXPORT_NAME, u32::MAX)).await;
        check("a name of 4097 bytes", true, &option(option::EXPORT_NAME, 4097)).await;
        check("an unknown name", true, &[&option(option::EXPORT_NAME, 1)[..], b"x"].concat()).await;
        check("a name that is no text", true, &[&option(option::EXPORT_NAME, 1)[..], &[255]].concat()).await;
        check("HTTP", false, b"GET / HTTP/1.1\r\n\r\n").await;
    });
}

#[test]
fn hang_ups_anywhere_in_negotiation_are_harmless() {
    local(async {
        let world = World::new();
        let mut all = 3_u32.to_be_bytes().to_vec();
        let go = Raw::info_request("disk", &[0, 1, 2, 3]);
        all.extend([&b"IHAVEOPT"[..], &7_u32.to_be_bytes(), &(go.len() as u32).to_be_bytes(), &go].concat());
        for cut in 0..=all.len() {
            let (mut raw, task) = world.connect();
            // With unread bytes left, closing would be a reset, and nothing of what was sent would arrive.
            raw.take(18).await;
            raw.send(&all[..cut]).await;
            drop(raw);
            task.await.unwrap();
        }
        let stats = world.server.stats();
        assert_eq!((stats.connections, stats.negotiating), (0, 0));
        // Whenever it was opened, it was released.
        let (opened, deeds) = (world.exports.opened.borrow(), world.disk.deeds.borrow());
        assert_eq!((opened.len(), deeds.len()), (1, 1));
        assert_eq!(deeds[0], Deed::Released);
        assert_eq!(Rc::strong_count(&world.disk), 2, "a connection's reference is left");
    });
}

#[test]
fn infos_that_were_asked_for_are_given() {
    local(async {
        let world = World::new();
        let (mut raw, _) = world.connect();
        raw.greet().await;
        raw.structured().await;
        let replies = raw.ask(option::INFO, &Raw::info_request("disk", &[3, 2, 1, 99])).await.unwrap();
        let infos: Vec<_> = replies.iter().map(|(_, data)| InfoReply::parse(data).unwrap()).collect();
        let flags = 0b1101_1110_1101;
        let block = InfoReply::BlockSize { minimum: 1, preferred: 4096, maximum: 32 << 20 };
        let (name, text) = (InfoReply::Name("disk".into()), InfoReply::Description("ram".into()));
        assert_eq!(infos, [InfoReply::Export { size: ByteCount(SIZE), flags }, name, text, block]);
        assert!(world.exports.opened.borrow().is_empty(), "INFO opened the export");
    });
}

#[test]
fn export_name_gives_size_flags_and_zeros() {
    local(async {
        let world = World::new();
        for (client_flags, zeros) in [(3_u32, 0), (1, 124)] {
            let (mut raw, _) = world.connect();
            raw.take(18).await;
            raw.send(&client_flags.to_be_bytes()).await;
            raw.option(option::EXPORT_NAME, b"disk").await;
            let reply = raw.take(10 + zeros).await;
            assert_eq!(reply[..8], SIZE.to_be_bytes());
            assert!(reply[10..].iter().all(|byte| *byte == 0));
            raw.send(&request(3, 0, 5, 0, 0)).await;
            assert_eq!(raw.reply().await, Got::Simple { errno: 0, cookie: 5 });
        }
    });
}

#[test]
fn the_list_leaves_out_names_that_are_too_long() {
    local(async {
        let world = World::new();
        let (mut raw, task) = world.connect();
        raw.greet().await;
        let names = raw.ask(option::LIST, &[]).await.unwrap();
        assert_eq!(names, [(option_reply::SERVER, [&[0, 0, 0, 4][..], b"disk"].concat())]);
        assert_eq!(raw.ask(option::ABORT, &[]).await, Ok(vec![]));
        assert!(raw.is_hung_up().await);
        task.await.unwrap();
    });
}

#[test]
fn contexts_are_listed_and_selected() {
    local(async {
        let world = World::new();
        let (mut raw, _) = world.connect();
        raw.greet().await;
        raw.structured().await;
        let allocation = vec![(option_reply::META_CONTEXT, [&[0, 0, 0, 1][..], b"base:allocation"].concat())];
        for (queries, listed, selected) in [
            (&[][..], true, false),
            (&["base:"], true, false),
            (&["base:allocation"], true, true),
            (&["qemu:dirty-bitmap:x", "base:allocation"], true, true),
            (&["other:", "base:dirty", ""], false, false),
        ] {
            let replies = raw.ask(option::LIST_META_CONTEXT, &contexts("disk", queries)).await.unwrap();
            assert_eq!(replies == allocation, listed, "{queries:?}");
            let replies = raw.ask(option::SET_META_CONTEXT, &contexts("disk", queries)).await.unwrap();
            assert_eq!(replies == allocation, selected, "{queries:?}");
        }
    });
}

#[test]
fn contexts_count_only_for_their_export() {
    local(async {
        let world = World::new();
        let (mut raw, _) = world.connect();
        raw.greet().await;
        raw.structured().await;
        raw.select("disk", &["base:allocation", &session(1).to_string()]).await;
        raw.go("").await.unwrap();
        raw.send(&request(7, 0, 5, 0, 4096)).await;
        assert_eq!(raw.errno(5).await, 22);
        assert_eq!(world.exports.opened.borrow()[0].session, None);
    });
}

#[test]
fn refusals_to_open_are_told() {
    local(async {
        let world = World::new();
        let (mut raw, _) = world.connect();
        raw.greet().await;
        for (error, expected) in [
            (OpenError::NotFound("gone".into()), UNKNOWN),
            (OpenError::Denied("fenced".into()), POLICY),
            (OpenError::Unavailable("starting".into()), SHUTDOWN),
        ] {
            *world.exports.refuse.borrow_mut() = Some(error.clone());
            raw.option(option::GO, &Raw::info_request("disk", &[])).await;
            let (header, text) = raw.option_reply().await;
            assert_eq!((header.reply, text), (expected, error.to_string().into_bytes()));
        }
    });
}

#[test]
fn a_slow_client_is_hung_up_on() {
    simulated(async {
        let (timeout, pause) = (Duration::from_millis(100), Duration::from_millis(3));
        let world = World::with(ServerOptions { negotiation_timeout: timeout, ..ServerOptions::default() });
        let (mut raw, task) = world.connect_in_memory(4096);
        let begun = Instant::now();
        raw.greet().await;
        // One byte at a time does not buy more time, nor do whole options.
        for byte in b"IHAVEOPT\0\0\0\0\0\0\0\0".iter().cycle() {
            if task.is_finished() {
                break;
            }
            raw.try_send(&[*byte]).await;
            tokio::time::sleep(pause).await;
        }
        assert!((timeout..timeout + 2 * pause).contains(&begun.elapsed()), "{:?}", begun.elapsed());
        assert!(raw.is_hung_up().await);
        task.await.unwrap();
        assert_eq!(world.server.stats().dropped, 1);
    });
}

#[test]
fn five_hundred_half_open_connections_keep_nobody_out() {
    local(async {
        let world = World::with(ServerOptions { negotiating_max: 100, ..ServerOptions::default() });
        let (mut before, _) = world.transmitting().await;
        let mut half_open = Vec::new();
        for index in 0..500_usize {
            let (mut raw, _) = world.connect();
            if index % 2 == 0 {
                raw.greet().await;
                raw.send(&b"IHAVEOPT\0\0\0\x07\0\0\x0f\xff"[..index % 17]).await;
            }
            half_open.push(raw);
            before.send(&support::write(index as u64, 0, &[1; 100])).await;
            assert_eq!(before.errno(index as u64).await, 0);
        }
        let (mut after, _) = world.transmitting().await;
        after.send(&request(3, 0, 5, 0, 0)).await;
        assert_eq!(after.errno(5).await, 0);
        until(|| world.server.stats().connections == 101).await;
        let stats = world.server.stats();
        assert_eq!((stats.negotiating, stats.connections), (100 - 1, 100 + 1));
        drop(half_open);
        until(|| world.server.stats().connections == 2).await;
        assert_eq!(world.server.stats().connections, 2);
    });
}

#[test]
fn connections_are_bounded_in_all() {
    local(async {
        let world = World::with(ServerOptions { connections_max: 2, ..ServerOptions::default() });
        let (_first, _) = world.transmitting().await;
        let (second, second_task) = world.transmitting().await;
        let (mut third, _) = world.connect();
        assert!(third.is_hung_up().await);
        drop(second);
        second_task.await.unwrap();
        world.transmitting().await;
    });
}
