//! What nodes and the beacon say to each other, one message a datagram, byte 0 the type.
//!
//! | type | message | layout after the type | direction |
//! |---|---|---|---|
//! | 01 | discover | node 4 | node to beacon |
//! | 02 | discover reply | address length 1, address 4 or 16, port 2 | beacon to node |
//! | 03 | punch request | requester 4, target 4 | node to beacon |
//! | 04 | punch command | address length 1, address, port 2 | beacon to both nodes |
//! | 05 | relay | sender 4, destination 4, datagram | node to beacon |
//! | 06 | relay deliver | sender 4, datagram | beacon to node |
//! | 0A | notice | kind 1: 01, a handshake waits at the registry | beacon to node |
//!
//! Newer nodes append keys or signatures to 01 and 03; surplus bytes are ignored. None of these
//! messages is authenticated: a node believes 02, 04, 06 and 0A from its own beacon's address only.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::fault::DropReason;
use crate::ids::NodeId;

/// Longest message without a relayed datagram: a reply with an IPv6 address.
pub const BEACON_LEN_MAX: usize = 1 + 1 + 16 + 2;
/// Bytes before the datagram of a relay message.
pub const RELAY_HEADER_LEN: usize = 9;
/// Bytes before the datagram of a relay-deliver message.
pub const DELIVER_HEADER_LEN: usize = 5;

/// A message, its relayed datagram borrowed.
#[derive(Debug, PartialEq, Eq)]
pub enum BeaconMessage<'b> {
    /// Tells the beacon at which address `node` is seen.
    Discover {
        /// The sender.
        node: NodeId,
    },
    /// The address at which the beacon sees the receiver.
    DiscoverReply {
        /// It.
        observed: SocketAddr,
    },
    /// Asks the beacon to make both nodes punch.
    PunchRequest {
        /// The sender.
        requester: NodeId,
        /// Whom it wants to reach.
        target: NodeId,
    },
    /// Asks the receiver to send punches to an address.
    PunchCommand {
        /// Where to.
        to: SocketAddr,
    },
    /// Asks the beacon to pass a datagram on.
    Relay {
        /// Who sends, by its own word.
        sender: NodeId,
        /// To whom.
        destination: NodeId,
        /// A tunnel datagram.
        datagram: &'b mut [u8],
    },
    /// A datagram passed on.
    Deliver {
        /// Who sent it, by its own word.
        sender: NodeId,
        /// A tunnel datagram.
        datagram: &'b mut [u8],
    },
    /// Something waits for the receiver at the registry.
    Notice {
        /// What: 1 for a handshake.
        kind: u8,
    },
}

impl<'b> BeaconMessage<'b> {
    /// Reads a message.
    ///
    /// # Errors
    /// [`DropReason::BadBeacon`] for an unknown type or a message that is too short.
    pub fn parse(bytes: &'b mut [u8]) -> Result<Self, DropReason> {
        let (kind, rest) = bytes.split_first_mut().ok_or(DropReason::BadBeacon)?;
        let node = |at: usize| {
            let bytes = rest.get(at..)?.first_chunk::<4>()?;
            Some(NodeId(u32::from_be_bytes(*bytes)))
        };
        let message = match *kind {
            1 => node(0).map(|node| BeaconMessage::Discover { node }),
            2 => endpoint(rest).map(|observed| BeaconMessage::DiscoverReply { observed }),
            3 => node(0)
                .zip(node(4))
                .map(|(requester, target)| BeaconMessage::PunchRequest { requester, target }),
            4 => endpoint(rest).map(|to| BeaconMessage::PunchCommand { to }),
            5 => node(0)
                .zip(node(4))
                .map(|(sender, destination)| BeaconMessage::Relay {
                    sender,
                    destination,
                    datagram: &mut rest[8..],
                }),
            6 => node(0).map(|sender| BeaconMessage::Deliver {
                sender,
                datagram: &mut rest[4..],
            }),
            0x0A => rest
                .first()
                .map(|kind| BeaconMessage::Notice { kind: *kind }),
            _ => None,
        };
        message.ok_or(DropReason::BadBeacon)
    }

    /// Writes the message to the front of `out` and answers its length, or `None` if it does not
    /// fit.
    pub fn write(&self, out: &mut [u8]) -> Option<usize> {
        let mut writer = Writer { out, length: 0 };
        match self {
            BeaconMessage::Discover { node } => writer.byte(1)?.node(*node)?,
            BeaconMessage::DiscoverReply { observed } => writer.byte(2)?.endpoint(*observed)?,
            BeaconMessage::PunchRequest { requester, target } => {
                writer.byte(3)?.node(*requester)?.node(*target)?
            }
            BeaconMessage::PunchCommand { to } => writer.byte(4)?.endpoint(*to)?,
            BeaconMessage::Relay {
                sender,
                destination,
                datagram,
            } => writer
                .byte(5)?
                .node(*sender)?
                .node(*destination)?
                .bytes(datagram)?,
            BeaconMessage::Deliver { sender, datagram } => {
                writer.byte(6)?.node(*sender)?.bytes(datagram)?
            }
            BeaconMessage::Notice { kind } => writer.byte(0x0A)?.byte(*kind)?,
        };
        Some(writer.length)
    }
}

fn endpoint(bytes: &[u8]) -> Option<SocketAddr> {
    let (&length, rest) = bytes.split_first()?;
    let (ip, rest) = match length {
        4 => {
            let (ip, rest) = rest.split_first_chunk::<4>()?;
            (IpAddr::V4(Ipv4Addr::from(*ip)), rest)
        }
        16 => {
            let (ip, rest) = rest.split_first_chunk::<16>()?;
            (IpAddr::V6(Ipv6Addr::from(*ip)), rest)
        }
        _ => return None,
    };
    Some(SocketAddr::new(
        ip,
        u16::from_be_bytes(*rest.first_chunk::<2>()?),
    ))
}

struct Writer<'o> {
    out: &'o mut [u8],
    length: usize,
}

impl Writer<'_> {
    fn bytes(&mut self, bytes: &[u8]) -> Option<&mut Self> {
        self.out
            .get_mut(self.length..)?
            .get_mut(..bytes.len())?
            .copy_from_slice(bytes);
        self.length += bytes.len();
        Some(self)
    }

    fn byte(&mut self, byte: u8) -> Option<&mut Self> {
        self.bytes(&[byte])
    }

    fn node(&mut self, node: NodeId) -> Option<&mut Self> {
        self.bytes(&node.0.to_be_bytes())
    }

    fn endpoint(&mut self, endpoint: SocketAddr) -> Option<&mut Self> {
        match endpoint.ip() {
            IpAddr::V4(ip) => self.byte(4)?.bytes(&ip.octets())?,
            IpAddr::V6(ip) => self.byte(16)?.bytes(&ip.octets())?,
        };
        self.bytes(&endpoint.port().to_be_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Captured messages, and what they say.
    #[test]
    fn captured_messages_are_read_and_written_alike() {
        let here = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let frame = &mut *b"PILP".to_vec();
        let again = &mut *b"PILP".to_vec();
        let (one, four, peer) = (NodeId(1), NodeId(4), NodeId(0x1C));
        for (text, message) in [
            (
                &b"\x01\0\0\0\x04"[..],
                BeaconMessage::Discover { node: four },
            ),
            (
                b"\x02\x04\x7f\0\0\x01\x5d\x91",
                BeaconMessage::DiscoverReply {
                    observed: here(23_953),
                },
            ),
            (
                b"\x03\0\0\0\x1c\0\0\0\x01",
                BeaconMessage::PunchRequest {
                    requester: peer,
                    target: one,
                },
            ),
            (
                b"\x04\x04\x7f\0\0\x01\x5d\x67",
                BeaconMessage::PunchCommand { to: here(23_911) },
            ),
            (
                b"\x05\0\0\0\x1c\0\0\0\x01PILP",
                BeaconMessage::Relay {
                    sender: peer,
                    destination: one,
                    datagram: frame,
                },
            ),
            (
                b"\x06\0\0\0\x01PILP",
                BeaconMessage::Deliver {
                    sender: one,
                    datagram: again,
                },
            ),
        ] {
            let mut bytes = text.to_vec();
            assert_eq!(BeaconMessage::parse(&mut bytes), Ok(message), "{text:?}");
            let mut bytes = text.to_vec();
            let mut out = [0; 64];
            let length = BeaconMessage::parse(&mut bytes)
                .expect("read above")
                .write(&mut out);
            assert_eq!(out[..length.expect("fits")], *text);
            let relays = text[0] >= 5;
            for shorter in 0..text.len() {
                let cut = BeaconMessage::parse(&mut bytes[..shorter]).err();
                let whole = relays && shorter >= text.len() - 4;
                assert_eq!(
                    cut,
                    (!whole).then_some(DropReason::BadBeacon),
                    "{text:?} to {shorter}"
                );
            }
        }
    }

    #[test]
    fn an_ipv6_address_takes_the_longest_message() {
        let observed = "[2001:db8::7]:4000".parse().expect("address");
        let mut out = [0; BEACON_LEN_MAX];
        let message = BeaconMessage::DiscoverReply { observed };
        assert_eq!(message.write(&mut out[..BEACON_LEN_MAX - 1]), None);
        assert_eq!(message.write(&mut out), Some(BEACON_LEN_MAX));
        assert_eq!(BeaconMessage::parse(&mut out), Ok(message));
        out[1] = 5;
        assert_eq!(BeaconMessage::parse(&mut out), Err(DropReason::BadBeacon));
        assert_eq!(
            BeaconMessage::parse(&mut [0x0A, 1]),
            Ok(BeaconMessage::Notice { kind: 1 })
        );
        assert_eq!(
            BeaconMessage::parse(&mut [0x0B, 1]),
            Err(DropReason::BadBeacon)
        );
        assert_eq!(BeaconMessage::parse(&mut []), Err(DropReason::BadBeacon));
    }
}
