//! Generic netlink: messages of attributes to a family of the kernel, and its answers.
//!
//! ```text
//! nlmsghdr (16) │ genlmsghdr (4) │ attribute: length (2), type (2), payload, padded to 4 │ …
//! ```
//!
//! Source: Linux, include/uapi/linux/netlink.h and genetlink.h, Documentation/userspace-api/netlink/intro.rst. Numbers
//! are in the machine's own order.
//!
//! Invariants: nothing that comes in panics or reads past its end; only what the kernel itself sent is looked at. A call
//! is one request and its acknowledgement, on a socket of its own, and may block as long as the kernel is at it.

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, netlink, recvfrom, sendto,
    socket_with, sockopt,
};
use std::{io, os::fd::OwnedFd, time::Duration};

const HEADER_BYTES: usize = 16;
const GENERIC_HEADER_BYTES: usize = 4;
const ATTRIBUTE_HEADER_BYTES: usize = 4;
/// More than the kernel puts into one datagram (NLMSG_GOODSIZE is a page at most).
const DATAGRAM_BYTES_MAX: usize = 32 << 10;
/// The kernel answers before the request's send returns; this is for an answer that was lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
const NLA_F_NESTED: u16 = 1 << 15;
const NLA_TYPE_MASK: u16 = 0x3fff;

const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const CTRL_ATTR_MAXATTR: u16 = 5;

/// A family of the running kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Family {
    id: u16,
    /// The highest attribute that it knows.
    pub attribute_max: u32,
}

/// Attributes to be sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    /// A number.
    #[must_use]
    pub fn u32(self, kind: u16, value: u32) -> Attributes {
        self.put(kind, &value.to_ne_bytes())
    }

    /// A number.
    #[must_use]
    pub fn u64(self, kind: u16, value: u64) -> Attributes {
        self.put(kind, &value.to_ne_bytes())
    }

    /// A text without NUL; the kernel wants one at its end.
    #[must_use]
    pub fn text(self, kind: u16, text: &str) -> Attributes {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes)
    }

    /// Attributes within an attribute.
    #[must_use]
    pub fn nested(self, kind: u16, inner: &Attributes) -> Attributes {
        self.put(kind | NLA_F_NESTED, &inner.0)
    }

    fn put(mut self, kind: u16, payload: &[u8]) -> Attributes {
        // Everything of ours is far below 64 KiB.
        let length = u16::try_from(ATTRIBUTE_HEADER_BYTES + payload.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(payload);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }
}

/// Attributes that came; ends at the first that is none.
pub struct Received<'a>(&'a [u8]);

impl<'a> Iterator for Received<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let length = usize::from(u16_at(self.0, 0)?);
        let kind = u16_at(self.0, 2)? & NLA_TYPE_MASK;
        let payload = self.0.get(ATTRIBUTE_HEADER_BYTES..length)?;
        // The padding of the last one may be missing.
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    }
}

/// The number in an attribute of this kind.
pub fn find_u32(attributes: &[u8], kind: u16) -> Option<u32> {
    let payload = Received(attributes).find(|(found, _)| *found == kind)?.1;
    Some(u32::from_ne_bytes(payload.try_into().ok()?))
}

fn find_u16(attributes: &[u8], kind: u16) -> Option<u16> {
    let payload = Received(attributes).find(|(found, _)| *found == kind)?.1;
    Some(u16::from_ne_bytes(payload.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// What a datagram says about our request.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// Attributes; the end is still to come.
    Data(Vec<u8>),
    /// Done, or an errno.
    End(i32),
}

/// The answers to request `sequence` in a datagram; what is not for it or makes no sense is passed over.
fn answers(datagram: &[u8], sequence: u32) -> Vec<Answer> {
    let mut answers = Vec::new();
    let mut rest = datagram;
    while let (Some(length), Some(kind), Some(number)) = (u32_at(rest, 0), u16_at(rest, 4), u32_at(rest, 8)) {
        let Some(payload) = usize::try_from(length).ok().and_then(|length| rest.get(HEADER_BYTES..length))
        else {
            break;
        };
        if number == sequence {
            match kind {
                NLMSG_ERROR => answers.extend(u32_at(payload, 0).map(|error| Answer::End(error as i32))),
                kind if kind >= GENL_ID_CTRL => {
                    answers
                        .extend(payload.get(GENERIC_HEADER_BYTES..).map(|data| Answer::Data(data.to_vec())));
                }
                _ => {}
            }
        }
        rest = rest.get((HEADER_BYTES + payload.len()).next_multiple_of(4)..).unwrap_or_default();
    }
    answers
}

fn request(family: u16, command: u8, sequence: u32, attributes: &Attributes) -> Vec<u8> {
    let length = HEADER_BYTES + GENERIC_HEADER_BYTES + attributes.0.len();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend_from_slice(&(length as u32).to_ne_bytes());
    bytes.extend_from_slice(&family.to_ne_bytes());
    bytes.extend_from_slice(&(NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    // The kernel fills in our port.
    bytes.extend_from_slice(&0_u32.to_ne_bytes());
    // Command, version (all families here have 1), reserved.
    bytes.extend_from_slice(&[command, 1, 0, 0]);
    bytes.extend_from_slice(&attributes.0);
    bytes
}

/// A conversation with the kernel.
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// A socket of its own.
    pub fn open() -> io::Result<Socket> {
        let protocol = Some(netlink::GENERIC);
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(ANSWER_TIMEOUT))?;
        bind(&fd, &netlink::SocketAddrNetlink::new(0, 0))?;
        Ok(Socket { fd, sequence: 0 })
    }

    /// The family of this name; `NotFound` when the kernel has none (in this network namespace).
    pub fn family(&mut self, name: &str) -> io::Result<Family> {
        let name = Attributes::default().text(CTRL_ATTR_FAMILY_NAME, name);
        let controller = Family { id: GENL_ID_CTRL, attribute_max: 0 };
        let answer = self.call(controller, CTRL_CMD_GETFAMILY, &name)?;
        let id = find_u16(&answer, CTRL_ATTR_FAMILY_ID)
            .filter(|id| *id >= GENL_ID_CTRL)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a family without a number"))?;
        Ok(Family { id, attribute_max: find_u32(&answer, CTRL_ATTR_MAXATTR).unwrap_or(0) })
    }

    /// Does something, and gives back the attributes of the answer, if there are any.
    pub fn call(&mut self, family: Family, command: u8, attributes: &Attributes) -> io::Result<Vec<u8>> {
        self.sequence += 1;
        let message = request(family.id, command, self.sequence, attributes);
        sendto(&self.fd, &message, SendFlags::empty(), &netlink::SocketAddrNetlink::new(0, 0))?;
        let mut data = Vec::new();
        let mut datagram = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            let (received, length, sender) = recvfrom(&self.fd, &mut datagram[..], RecvFlags::empty())?;
            let sender = sender.and_then(|sender| netlink::SocketAddrNetlink::try_from(sender).ok());
            if sender.is_none_or(|sender| sender.pid() != 0) || length > received {
                continue;
            }
            for answer in answers(&datagram[..received], self.sequence) {
                match answer {
                    Answer::Data(attributes) => data = attributes,
                    Answer::End(0) => return Ok(data),
                    // A negative errno.
                    Answer::End(error) => return Err(io::Error::from_raw_os_error(error.saturating_neg())),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_packed_as_the_kernel_reads_them() {
        let inner = Attributes::default().u32(1, 7);
        let packed =
            Attributes::default().u64(2, 5).text(10, "abcd").nested(7, &inner).put(3, &1_u16.to_ne_bytes());
        let mut expected: Vec<u8> = Vec::new();
        let mut put = |length: u16, kind: u16, payload: &[u8]| {
            expected.extend(length.to_ne_bytes());
            expected.extend(kind.to_ne_bytes());
            expected.extend(payload);
        };
        put(12, 2, &5_u64.to_ne_bytes());
        put(9, 10, b"abcd\0\0\0\0");
        put(
            12,
            7 | 0x8000,
            &[8_u16.to_ne_bytes(), 1_u16.to_ne_bytes(), 7_u16.to_ne_bytes(), [0, 0]].concat(),
        );
        put(6, 3, &[1_u16.to_ne_bytes(), [0, 0]].concat());
        if cfg!(target_endian = "little") {
            assert_eq!(packed.0, expected);
        }
        let kinds: Vec<(u16, usize)> =
            Received(&packed.0).map(|(kind, payload)| (kind, payload.len())).collect();
        assert_eq!(kinds, [(2, 8), (10, 5), (7, 8), (3, 2)]);
    }

    fn message(kind: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = ((HEADER_BYTES + payload.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 2]);
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn an_answer_is_data_and_an_end() {
        let attributes = Attributes::default().u32(1, 3).0;
        let data = [&[1, 1, 0, 0][..], &attributes].concat();
        let datagram = [
            message(0x1c, 8, &data),
            message(0x1c, 9, &data),
            message(NLMSG_ERROR, 9, &(-19_i32).to_ne_bytes()),
        ]
        .concat();
        assert_eq!(answers(&datagram, 9), [Answer::Data(attributes.clone()), Answer::End(-19)]);
        assert_eq!(find_u32(&attributes, 1), Some(3));
        assert_eq!(find_u32(&attributes, 2), None);
        assert_eq!(find_u16(&attributes, 1), None, "of another size");
    }

    /// Every cut and every changed byte of a good datagram, and noise.
    #[test]
    fn hostile_bytes_end_the_reading() {
        let attributes = Attributes::default().u32(1, 3).nested(9, &Attributes::default().text(2, "x")).0;
        let good =
            [message(0x1c, 1, &[&[1, 1, 0, 0][..], &attributes].concat()), message(NLMSG_ERROR, 1, &[0; 4])]
                .concat();
        let look = |bytes: &[u8]| {
            for answer in answers(bytes, 1) {
                if let Answer::Data(data) = answer {
                    assert!(Received(&data).count() <= data.len());
                    let _ = (find_u16(&data, 1), find_u32(&data, 1));
                }
            }
            assert!(Received(bytes).count() <= bytes.len());
        };
        for cut in 0..good.len() {
            look(&good[..cut]);
        }
        for at in 0..good.len() {
            for value in [0, 1, 3, 4, 15, 16, 0x7f, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                look(&bad);
            }
        }
        for length in [0_u32, 1, 15, 16, 17, u32::MAX] {
            let mut bad = good.clone();
            bad[..4].copy_from_slice(&length.to_ne_bytes());
            look(&bad);
        }
        assert_eq!(answers(&message(NLMSG_ERROR, 1, &[1, 2]), 1), [], "an error without a number");
        assert_eq!(answers(&message(0x1c, 1, &[1]), 1), [], "no room for a header");
    }

    #[test]
    fn the_kernel_knows_its_own_controller() {
        // Where netlink is forbidden (a sandbox) there is nothing to ask.
        let Ok(mut socket) = Socket::open() else { return };
        let controller = socket.family("nlctrl").unwrap();
        assert_eq!(controller.id, GENL_ID_CTRL);
        assert_eq!(socket.family("no-such-family").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
