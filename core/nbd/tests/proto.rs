//! Every message survives its bytes, and no bytes do harm.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::BufMut as _;
use ovs_nbd::{
    Extent, NbdError,
    proto::{
        ProtoError,
        handshake::{
            Greeting, InfoReply, InfoRequest, ListReply, MetaContextReply, MetaContextRequest, OptionHeader,
            OptionReplyHeader, QUERIES_MAX, bounded_text,
        },
        reply::{BlockStatusChunk, ChunkHeader, ErrorChunk, HoleChunk, ReplyHeader, SimpleReply},
        request::{Cookie, RequestHeader},
    },
};
use ovs_units::{ByteCount, ByteOffset};
use proptest::{collection::vec, prelude::*};
use std::fmt::Debug;

/// Formats and parses, and checks that every shorter and every longer message of a fixed form is refused.
fn check<T: Debug + PartialEq>(
    message: &T,
    format: impl Fn(&T, &mut Vec<u8>),
    parse: impl Fn(&[u8]) -> Result<T, ProtoError>,
    is_open_ended: bool,
) {
    let mut bytes = Vec::new();
    format(message, &mut bytes);
    assert_eq!(&parse(&bytes).unwrap(), message);
    if is_open_ended {
        return;
    }
    for cut in 0..bytes.len() {
        assert!(parse(&bytes[..cut]).is_err(), "{cut} of {} bytes were taken for all", bytes.len());
    }
    bytes.put_u8(0);
    assert!(parse(&bytes).is_err(), "a byte too many was taken");
}

fn text() -> impl Strategy<Value = String> {
    "[^\0]{0,40}"
}

proptest! {
    #[test]
    fn handshake_messages_round_trip(
        flags in any::<u16>(), option in any::<u32>(), reply in any::<u32>(), length in any::<u32>(),
        name in text(), other in text(), wanted in vec(any::<u16>(), 0..9), queries in vec(text(), 0..QUERIES_MAX),
    ) {
        check(&Greeting { flags }, |m, out| m.format(out), Greeting::parse, false);
        check(&OptionHeader { option, length }, |m, out| m.format(out), OptionHeader::parse, false);
        let header = OptionReplyHeader { option, reply, length };
        check(&header, |m, out| m.format(out), OptionReplyHeader::parse, false);
        let info = InfoRequest { name: name.clone(), wanted };
        check(&info, |m, out| m.format(out), InfoRequest::parse, false);
        let contexts = MetaContextRequest { name: name.clone(), queries };
        check(&contexts, |m, out| m.format(out), MetaContextRequest::parse, false);
        let context = MetaContextReply { id: option, name: name.clone() };
        check(&context, |m, out| m.format(out), MetaContextReply::parse, true);
        let list = ListReply { name: name.clone(), description: other.clone() };
        check(&list, |m, out| m.format(out), ListReply::parse, true);
        let export = InfoReply::Export { size: ByteCount(u64::from(length) << 20), flags };
        let block = InfoReply::BlockSize { minimum: option, preferred: reply, maximum: length };
        for info in [export, block] {
            check(&info, |m, out| m.format(out), InfoReply::parse, false);
        }
        for info in [InfoReply::Name(name), InfoReply::Description(other), InfoReply::Unknown(flags | 4)] {
            check(&info, |m, out| m.format(out), InfoReply::parse, true);
        }
    }

    #[test]
    fn transmission_messages_round_trip(
        flags in any::<u16>(), command in any::<u16>(), cookie in any::<u64>(), offset in any::<u64>(),
        length in any::<u32>(), errno in any::<u32>(), message in text(),
        extents in vec((1_u32.., any::<bool>(), any::<bool>()), 1..20),
    ) {
        let (cookie, offset) = (Cookie(cookie), ByteOffset(offset));
        let request = RequestHeader { flags, command, cookie, offset, length };
        check(&request, |m, out| m.format(out), RequestHeader::parse, false);
        check(&SimpleReply { errno, cookie }, |m, out| m.format(out), SimpleReply::parse, false);
        let head = ChunkHeader { flags, kind: command, cookie, length };
        check(&head, |m, out| m.format(out), ChunkHeader::parse, false);
        check(&HoleChunk { offset, length }, |m, out| m.format(out), HoleChunk::parse, false);
        let error = ErrorChunk { error: NbdError::NoSpace(message) };
        check(&error, |m, out| m.format(out), ErrorChunk::parse, true);
        let extents = extents.into_iter().map(|(length, hole, zero)| Extent {
            length: ByteCount(length.into()), hole, zero,
        }).collect();
        let status = BlockStatusChunk { context_id: length, extents };
        // Cut at an extent's boundary it is a shorter message.
        check(&status, |m, out| m.format(out), BlockStatusChunk::parse, true);
    }

    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in vec(any::<u8>(), 0..200)) {
        let _ = Greeting::parse(&bytes);
        let _ = OptionHeader::parse(&bytes);
        let _ = OptionReplyHeader::parse(&bytes);
        let _ = InfoRequest::parse(&bytes);
        let _ = MetaContextRequest::parse(&bytes);
        let _ = MetaContextReply::parse(&bytes);
        let _ = ListReply::parse(&bytes);
        let _ = InfoReply::parse(&bytes);
        let _ = RequestHeader::parse(&bytes);
        let _ = ReplyHeader::size_bytes(&bytes);
        let _ = ReplyHeader::parse(&bytes);
        let _ = HoleChunk::parse(&bytes);
        let _ = ErrorChunk::parse(&bytes);
        let _ = BlockStatusChunk::parse(&bytes);
    }

    #[test]
    fn lengths_that_lie_are_refused(length in 100_u32.., rest in vec(any::<u8>(), 0..50)) {
        let bytes = [&length.to_be_bytes()[..], &rest].concat();
        prop_assert!(InfoRequest::parse(&bytes).is_err());
        prop_assert!(MetaContextRequest::parse(&bytes).is_err());
        prop_assert!(ListReply::parse(&bytes).is_err());
    }
}

/// Bytes as the specification draws them, so that a mistake in both directions is seen.
#[test]
fn golden_bytes() {
    let mut out = Vec::new();
    let (cookie, offset) = (Cookie(0x0102), ByteOffset(0x0a00));
    RequestHeader { flags: 1, command: 6, cookie, offset, length: 0x1000 }.format(&mut out);
    let golden =
        [0x25, 0x60, 0x95, 0x13, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 16, 0];
    assert_eq!(out, golden);

    out.clear();
    SimpleReply { errno: 28, cookie }.format(&mut out);
    assert_eq!(out, [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 0, 0, 0, 0, 0, 0, 1, 2]);

    out.clear();
    ChunkHeader { flags: 1, kind: 1, cookie, length: 9 }.format(&mut out);
    assert_eq!(out, [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 9]);

    out.clear();
    Greeting { flags: 3 }.format(&mut out);
    assert_eq!(out, b"NBDMAGICIHAVEOPT\0\x03");

    out.clear();
    OptionReplyHeader { option: 7, reply: 1, length: 0 }.format(&mut out);
    assert_eq!(out, [0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0]);
}

#[test]
fn texts_are_cut_at_a_character() {
    let long = "é".repeat(3000);
    assert_eq!(bounded_text(&long).len(), 4096);
    assert_eq!(bounded_text(&format!("x{long}")).len(), 4095);
    assert_eq!(bounded_text("short"), "short");
}
