//! What two peers live through.

use std::time::Duration;

use super::pair::Pair;

#[test]
fn a_dial_establishes_both_ends_and_packets_flow() {
    let mut pair = Pair::new(1);
    pair.connect(0);
    pair.run(Duration::from_millis(20));
    assert!(pair.both_established());
    assert!(pair.send(0, b"there"));
    assert!(pair.send(1, b"and back"));
    pair.run(Duration::from_millis(20));
    assert_eq!(pair.nodes[1].delivered, [b"there".to_vec()]);
    assert_eq!(pair.nodes[0].delivered, [b"and back".to_vec()]);
    for node in &pair.nodes {
        node.assert_conservation();
        assert!(node.drops.is_empty(), "{:?}", node.drops);
    }
}
