//! Pilot addresses: network, node and port, in binary and in text.
//!
//! | form | example | where it is seen |
//! |---|---|---|
//! | binary | 6 bytes: network u16, node u32, big-endian | packet header |
//! | text | `1:0001.0042.00C7` | registry, daemons: network in decimal, then network, node high and node low half as four hex digits each |
//! | short text | `1:0000.0042.00C7` | published examples: the network stands in decimal only and its hex group is `0000` |
//!
//! Both text forms are read, in either case; the first is written, in upper case. A hex group that
//! is neither `0000` nor the decimal network is a slip of somebody's pen, and refused.

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ids::NodeId;

/// A node on a network. Network 0 is the backbone that every node is on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// Network number.
    pub network: u16,
    /// Node number.
    pub node: NodeId,
}

impl Address {
    /// The node number that means every node of a network.
    pub const BROADCAST: NodeId = NodeId(u32::MAX);

    /// `node` on the backbone, network 0.
    pub const fn backbone(node: NodeId) -> Self {
        Address { network: 0, node }
    }

    /// Binary form: network, node, big-endian.
    pub fn to_bytes(self) -> [u8; 6] {
        let [a, b] = self.network.to_be_bytes();
        let [c, d, e, f] = self.node.0.to_be_bytes();
        [a, b, c, d, e, f]
    }

    /// Reads [`Self::to_bytes`]; every value is an address.
    pub fn from_bytes([a, b, c, d, e, f]: [u8; 6]) -> Self {
        Address {
            network: u16::from_be_bytes([a, b]),
            node: NodeId(u32::from_be_bytes([c, d, e, f])),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (high, low) = (self.node.0 >> 16, self.node.0 & 0xFFFF);
        write!(
            f,
            "{}:{:04X}.{high:04X}.{low:04X}",
            self.network, self.network
        )
    }
}

impl FromStr for Address {
    type Err = AddressFault;

    fn from_str(text: &str) -> Result<Self, AddressFault> {
        let (decimal, groups) = text.split_once(':').ok_or(AddressFault::NoNetwork)?;
        let network = decimal_u16(decimal).ok_or(AddressFault::BadNetwork)?;
        let mut values = [0_u16; 3];
        let mut count = 0;
        for group in groups.split('.') {
            let value = values.get_mut(count).ok_or(AddressFault::GroupCount)?;
            count += 1;
            *value = hex_group(group).ok_or(AddressFault::BadGroup { position: count })?;
        }
        if count != values.len() {
            return Err(AddressFault::GroupCount);
        }
        let [hex, high, low] = values;
        if hex != network && hex != 0 {
            return Err(AddressFault::NetworkMismatch {
                decimal: network,
                hex,
            });
        }
        Ok(Address {
            network,
            node: NodeId(u32::from(high) << 16 | u32::from(low)),
        })
    }
}

/// A port of a node. Text form: address, `:`, decimal port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketAddress {
    /// The node.
    pub address: Address,
    /// Its port.
    pub port: u16,
}

impl fmt::Display for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.address, self.port)
    }
}

impl FromStr for SocketAddress {
    type Err = AddressFault;

    fn from_str(text: &str) -> Result<Self, AddressFault> {
        // An address holds one colon itself, so the port follows the last of two.
        let (address, port) = text.rsplit_once(':').ok_or(AddressFault::NoPort)?;
        if !address.contains(':') {
            return Err(AddressFault::NoPort);
        }
        let address = address.parse()?;
        Ok(SocketAddress {
            address,
            port: decimal_u16(port).ok_or(AddressFault::BadPort)?,
        })
    }
}

macro_rules! serde_as_text {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?
                    .parse()
                    .map_err(serde::de::Error::custom)
            }
        }
    };
}

serde_as_text!(Address);
serde_as_text!(SocketAddress);

/// Why a text is no address. The message names the part at fault and the form that is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressFault {
    /// No `:` after the network.
    NoNetwork,
    /// The part before `:` is no decimal number of 16 bits.
    BadNetwork,
    /// Not three groups between dots.
    GroupCount,
    /// A group is not four hexadecimal digits.
    BadGroup {
        /// Which, counted from 1.
        position: usize,
    },
    /// The hex group names another network than the decimal number.
    NetworkMismatch {
        /// Before the colon.
        decimal: u16,
        /// After it.
        hex: u16,
    },
    /// No `:` and port after the address.
    NoPort,
    /// The port is no decimal number of 16 bits.
    BadPort,
}

impl fmt::Display for AddressFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AddressFault::NoNetwork => f.write_str("no ':' after the network")?,
            AddressFault::BadNetwork => {
                f.write_str("the network before ':' is no decimal number from 0 to 65535")?;
            }
            AddressFault::GroupCount => f.write_str("not three groups of hex digits after ':'")?,
            AddressFault::BadGroup { position } => {
                write!(f, "group {position} is not four hexadecimal digits")?;
            }
            AddressFault::NetworkMismatch { decimal, hex } => {
                write!(
                    f,
                    "network {decimal} before ':' but {hex:04X} ({hex}) after it"
                )?;
            }
            AddressFault::NoPort => f.write_str("no ':' and port after the address")?,
            AddressFault::BadPort => {
                f.write_str("the port is no decimal number from 0 to 65535")?;
            }
        }
        f.write_str("; an address reads like 0:0000.0000.002A, with a port 0:0000.0000.002A:7")
    }
}

impl std::error::Error for AddressFault {}

/// Digits only: `u16::from_str` would take a sign.
fn decimal_u16(text: &str) -> Option<u16> {
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())
        .flatten()
}

/// Exactly four hex digits: `from_str_radix` would take a sign and fewer.
fn hex_group(text: &str) -> Option<u16> {
    (text.len() == 4 && text.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .then(|| u16::from_str_radix(text, 16).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_text_forms_are_read_and_the_full_one_is_written() {
        let address = Address {
            network: 1,
            node: NodeId(0x0042_00C7),
        };
        assert_eq!(address.to_string(), "1:0001.0042.00C7");
        for text in ["1:0001.0042.00C7", "1:0001.0042.00c7", "1:0000.0042.00C7"] {
            assert_eq!(text.parse(), Ok(address), "{text}");
        }
        let port = SocketAddress {
            address,
            port: 1_001,
        };
        assert_eq!(port.to_string(), "1:0001.0042.00C7:1001");
        assert_eq!("1:0000.0042.00C7:1001".parse(), Ok(port));
        assert_eq!(address.to_bytes(), [0, 1, 0, 0x42, 0, 0xC7]);
        assert_eq!(Address::backbone(NodeId(1)).to_string(), "0:0000.0000.0001");
    }

    #[test]
    fn a_bad_address_names_its_fault() {
        use AddressFault::*;
        for (text, fault) in [
            ("", NoNetwork),
            ("0000.0000.0001", NoNetwork),
            (":0000.0000.0001", BadNetwork),
            ("+1:0001.0000.0001", BadNetwork),
            ("65536:0000.0000.0001", BadNetwork),
            ("0:0000.0001", GroupCount),
            ("0:0000.0000.0000.0001", GroupCount),
            ("0:0000.0000.001", BadGroup { position: 3 }),
            ("0:0000.+000.0001", BadGroup { position: 2 }),
            ("0:00g0.0000.0001", BadGroup { position: 1 }),
            ("1:0002.0000.0001", NetworkMismatch { decimal: 1, hex: 2 }),
            ("0:0001.0000.0001", NetworkMismatch { decimal: 0, hex: 1 }),
        ] {
            assert_eq!(text.parse::<Address>(), Err(fault), "{text:?}");
        }
        for (text, fault) in [
            ("7", NoPort),
            ("0:0000.0000.0001", NoPort),
            ("0:0000.0000.0001:", BadPort),
            ("0:0000.0000.0001:65536", BadPort),
            ("0:0000.0000.0001:-7", BadPort),
            ("1:0002.0000.0001:7", NetworkMismatch { decimal: 1, hex: 2 }),
        ] {
            let result = text.parse::<SocketAddress>();
            // A missing port leaves groups where a port should be.
            let expected = if text == "0:0000.0000.0001" {
                Err(NoPort)
            } else {
                Err(fault)
            };
            assert_eq!(result, expected, "{text:?}");
        }
        assert!(GroupCount.to_string().contains("three groups"));
    }

    #[test]
    fn serde_uses_the_text() {
        let address = Address {
            network: 7,
            node: NodeId(0xABCD),
        };
        let json = serde_json::to_string(&address).expect("text");
        assert_eq!(json, "\"7:0007.0000.ABCD\"");
        assert_eq!(
            serde_json::from_str::<Address>(&json).expect("own text"),
            address
        );
        assert!(serde_json::from_str::<SocketAddress>("\"7\"").is_err());
    }

    proptest! {
        #[test]
        fn text_and_binary_round_trip(network: u16, node: u32, port: u16) {
            let address = Address { network, node: NodeId(node) };
            prop_assert_eq!(Address::from_bytes(address.to_bytes()), address);
            prop_assert_eq!(address.to_string().parse(), Ok(address));
            let socket = SocketAddress { address, port };
            prop_assert_eq!(socket.to_string().parse(), Ok(socket));
        }

        #[test]
        fn no_text_panics(text in "[0-9a-fA-F:.+ -]{0,24}") {
            let _ = text.parse::<Address>();
            let _ = text.parse::<SocketAddress>();
        }
    }
}
