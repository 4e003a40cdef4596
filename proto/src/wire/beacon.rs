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
//!
//! Newer nodes append keys or signatures to 01 and 03; surplus bytes are ignored. None of these
//! messages is authenticated: a node believes 02, 04 and 06 from its own beacon's address only.

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
            5 => node(0).zip(node(4)).map(|(sender, destination)| BeaconMessage::Relay {
                sender,
                destination,
                datagram: &mut rest[8..],
            }),
            6 => node(0)
                .map(|sender| BeaconMessage::Deliver { sender, datagram: &mut rest[4..] }),
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
            BeaconMessage::Relay { sender, destination, datagram } => {
                writer.byte(5)?.node(*sender)?.node(*destination)?.bytes(datagram)?
            }
            BeaconMessage::Deliver { sender, datagram } => {
                writer.byte(6)?.node(*sender)?.bytes(datagram)?
            }
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
    Some(SocketAddr::new(ip, u16::from_be_bytes(*rest.first_chunk::<2>()?)))
}

struct Writer<'o> {
    out: &'o mut [u8],
    length: usize,
}

impl Writer<'_> {
    fn bytes(&mut self, bytes: &[u8]) -> Option<&mut Self> {
        self.out.get_mut(self.length..)?.get_mut(..bytes.len())?.copy_from_slice(bytes);
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
