//! The text form of node addresses, and of the endpoints that nodes are told.

use std::net::{IpAddr, SocketAddr};

use ramjet_proto::addr::Address;
use ramjet_proto::ids::NodeId;

/// The text of a node's address on the backbone.
pub fn address_text(node: NodeId) -> String {
    Address::backbone(node).to_string()
}

/// Reads an address on the backbone, or a decimal node id.
pub fn parse_node(text: &str) -> Option<NodeId> {
    if let Ok(node) = text.parse() {
        return Some(NodeId(node));
    }
    let address: Address = text.parse().ok()?;
    (address.network == 0).then_some(address.node)
}

/// The endpoint to tell others about: what the client sent, with its host replaced by the address
/// its connection came from where that host means nothing to others (wildcard, loopback, private
/// or no address at all). A loopback host seen from loopback stays: both ends are on this machine.
/// `None` without a usable port.
pub fn observed_endpoint(listen_addr: &str, source: IpAddr) -> Option<SocketAddr> {
    let source = source.to_canonical();
    let (host, port) = listen_addr.rsplit_once(':')?;
    let port: u16 = port.parse().ok().filter(|&port| port != 0)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let host = match host.parse::<IpAddr>().map(|host| host.to_canonical()) {
        Ok(host) if host.is_loopback() && source.is_loopback() => host,
        Ok(host) if !means_nothing_elsewhere(host) => host,
        _ => source,
    };
    Some(SocketAddr::new(host, port))
}

fn means_nothing_elsewhere(host: IpAddr) -> bool {
    host.is_unspecified()
        || host.is_loopback()
        || match host {
            IpAddr::V4(host) => host.is_private() || host.is_link_local(),
            IpAddr::V6(host) => host.is_unique_local() || host.is_unicast_link_local(),
        }
}

/// Whether `text` is 1 to `length_max` lower-case letters and digits with inner hyphens: the form
/// of hostnames and tags.
pub fn is_label(text: &str, length_max: usize) -> bool {
    !text.is_empty()
        && text.len() <= length_max
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip_and_foreign_networks_are_not_ours() {
        assert_eq!(address_text(NodeId(1)), "0:0000.0000.0001");
        assert_eq!(address_text(NodeId(0xdead_beef)), "0:0000.DEAD.BEEF");
        for node in [1, 0xffff, 0x1_0000, u32::MAX] {
            assert_eq!(parse_node(&address_text(NodeId(node))), Some(NodeId(node)));
            assert_eq!(parse_node(&node.to_string()), Some(NodeId(node)));
        }
        for text in [
            "",
            "1:0001.0000.0001",
            "0:0000.0000",
            "0:0000.0000.0001.0000",
        ] {
            assert_eq!(parse_node(text), None, "{text}");
        }
    }

    #[test]
    fn hosts_that_mean_nothing_elsewhere_are_replaced() {
        let table = [
            ("0.0.0.0:4000", "127.0.0.1", Some("127.0.0.1:4000")),
            ("[::]:4000", "127.0.0.1", Some("127.0.0.1:4000")),
            (":4000", "127.0.0.1", Some("127.0.0.1:4000")),
            ("127.0.0.2:4000", "127.0.0.1", Some("127.0.0.2:4000")),
            ("127.0.0.1:4000", "203.0.113.9", Some("203.0.113.9:4000")),
            ("10.0.0.7:4000", "203.0.113.9", Some("203.0.113.9:4000")),
            (
                "198.51.100.4:4000",
                "203.0.113.9",
                Some("198.51.100.4:4000"),
            ),
            (
                "worker.example:4000",
                "203.0.113.9",
                Some("203.0.113.9:4000"),
            ),
            ("[::]:4000", "::ffff:203.0.113.9", Some("203.0.113.9:4000")),
            ("[::]:4000", "2001:db8::1", Some("[2001:db8::1]:4000")),
            ("127.0.0.1:0", "127.0.0.1", None),
            ("127.0.0.1", "127.0.0.1", None),
            ("", "127.0.0.1", None),
        ];
        for (sent, source, expected) in table {
            let source = source.parse().expect("an address");
            let seen = observed_endpoint(sent, source).map(|endpoint| endpoint.to_string());
            assert_eq!(seen.as_deref(), expected, "{sent} from {source}");
        }
    }

    #[test]
    fn labels_are_lower_case_with_inner_hyphens() {
        for good in ["a", "gpu-host-1", "0"] {
            assert!(is_label(good, 32), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "ä", "123456789"] {
            assert!(!is_label(bad, 8), "{bad}");
        }
    }
}
