//! Trust between two nodes, in all four outcomes and over both ways.

use super::*;
use crate::control::agent::handshakes::HandshakeSent;

fn trusts(node: &Node, peer: &Node) -> bool {
    let agent = node.agent();
    let book = agent.trusted().iter().any(|row| row.node == peer.id);
    let network = &agent.host.network;
    assert_eq!(
        network.reach(node.id).trusted.contains(&peer.id),
        book,
        "the workers are told"
    );
    book
}

#[test]
fn a_request_is_approved_by_a_person_and_both_trust() {
    on_control(async {
        let network = Network::new();
        let (a, b) = (run_node(&network, setup(1)), run_node(&network, setup(2)));
        let sent = a.agent().handshake(b.id, "please").await;
        assert_eq!(sent, Ok(HandshakeSent::Direct));
        until("the request", || b.agent().pending().len() == 1).await;
        let row = b.agent().pending().remove(0);
        assert_eq!((row.node, row.justification.as_str()), (a.id, "please"));
        assert!(!row.relayed && !trusts(&b, &a) && !trusts(&a, &b));
        let waiting = tokio::task::spawn_local({
            let agent = Rc::clone(a.agent());
            async move { agent.wait_trusted(NodeId(2), PATIENCE).await }
        });
        b.agent().approve(a.id).await.expect("it waits");
        assert!(waiting.await.expect("waited"));
        assert!(trusts(&a, &b) && trusts(&b, &a));
        until("both reports", || {
            network.reported(a.id, b.id) && network.reported(b.id, a.id)
        })
        .await;
        assert_eq!(
            a.agent().handshake(b.id, "").await,
            Ok(HandshakeSent::Trusted)
        );
    });
}

#[test]
fn auto_approval_trusts_at_once() {
    on_control(async {
        let network = Network::new();
        let a = run_node(&network, setup(1));
        let b = run_node(
            &network,
            Setup {
                auto_approve: true,
                ..setup(2)
            },
        );
        a.agent().handshake(b.id, "").await.expect("sent");
        until("trust", || trusts(&a, &b) && trusts(&b, &a)).await;
        assert!(b.agent().pending().is_empty());
    });
}

#[test]
fn a_rejection_is_told_and_leaves_nothing() {
    on_control(async {
        let network = Network::new();
        let (a, b) = (run_node(&network, setup(1)), run_node(&network, setup(2)));
        a.agent().handshake(b.id, "").await.expect("sent");
        until("the request", || b.agent().pending().len() == 1).await;
        b.agent().reject(a.id, "not now").await.expect("it waits");
        let open = || a.agent().book.borrow().asked_last_s().is_some();
        until("the rejection", || !open()).await;
        assert!(!trusts(&a, &b) && !trusts(&b, &a));
        let again = b.agent().approve(a.id).await;
        assert!(again.is_err_and(|why| why.contains("no pending handshake")));
    });
}

#[test]
fn a_revocation_ends_trust_on_both_sides_and_at_the_registry() {
    on_control(async {
        let network = Network::new();
        let (a, b) = (run_node(&network, setup(1)), run_node(&network, setup(2)));
        // Both ask: nobody has to approve.
        b.agent().handshake(a.id, "").await.expect("sent");
        a.agent().handshake(b.id, "").await.expect("sent");
        until("trust", || trusts(&a, &b) && trusts(&b, &a)).await;
        until("both reports", || {
            network.reported(a.id, b.id) && network.reported(b.id, a.id)
        })
        .await;
        a.agent().revoke(b.id).await.expect("trusted");
        until("the end of it", || !trusts(&b, &a)).await;
        assert!(!trusts(&a, &b));
        assert!(!network.reported(a.id, b.id) && !network.reported(b.id, a.id));
        let again = a.agent().revoke(b.id).await;
        assert!(again.is_err_and(|why| why.contains("not trusted")));
    });
}

#[test]
fn private_nodes_ask_over_the_registry() {
    on_control(async {
        let network = Network::new();
        let private = |node| Setup {
            public: false,
            ..setup(node)
        };
        let a = run_node(&network, private(1));
        let b = run_node(&network, private(2));
        // Nothing but the registry connects them.
        network.close_port(444, true);
        let sent = a.agent().handshake(b.id, "relay").await;
        assert_eq!(sent, Ok(HandshakeSent::Relayed));
        until("the request", || b.agent().pending().len() == 1).await;
        assert!(b.agent().pending()[0].relayed);
        b.agent().approve(a.id).await.expect("it waits");
        until("trust", || trusts(&a, &b) && trusts(&b, &a)).await;
        let c = run_node(&network, private(3));
        c.agent().handshake(b.id, "").await.expect("sent");
        until("the request", || b.agent().pending().len() == 1).await;
        b.agent().reject(c.id, "").await.expect("it waits");
        let open = || c.agent().book.borrow().asked_last_s().is_some();
        until("the rejection", || !open()).await;
        assert!(!trusts(&c, &b));
    });
}

#[test]
fn trust_survives_a_restart_and_is_reported_again() {
    on_control(async {
        let state = tempfile::tempdir().expect("a folder");
        let network = Network::new();
        let b = run_node(&network, setup(2));
        let kept = || Setup {
            state: Some(state.path()),
            ..setup(1)
        };
        let a = run_node(&network, kept());
        a.agent().trust_named(b.id);
        let file = state.path().join("trust.json");
        until("the file", || file.exists()).await;
        drop(a);
        network.set_away(true);
        let a = run_node(&network, kept());
        assert!(trusts(&a, &b));
        network.set_away(false);
        until("the report", || network.reported(a.id, b.id)).await;
        drop(a);
        std::fs::write(state.path().join("trust.json"), "{").expect("written");
        let broken = super::super::read_trust(Some(state.path()));
        assert!(broken.is_err_and(|why| why.contains("trust.json")));
    });
}

#[test]
fn what_a_stranger_sends_to_the_port_changes_nothing() {
    use super::super::host::{AgentStream, Host};
    use ramjet_proto::agent::handshake::{Handshake, HandshakeKind};
    on_control(async {
        let network = Network::new();
        let a = run_node(&network, setup(1));
        let stranger = network.host(9, true);
        let send = async |bytes: Vec<u8>| {
            let mut stream = stranger
                .dial(a.id, 444, PATIENCE)
                .await
                .expect("it listens");
            stream.write(bytes.into()).await.expect("taken");
            // Its end says that the message has been dealt with or refused.
            while let Ok(Some(_)) = stream.read().await {}
        };
        let message = |kind, sender: NodeId, unix_s| {
            let pair = (sender, a.id);
            let drawn = (unix_s, String::new());
            Handshake::new(kind, stranger.identity(), pair, "", drawn).to_bytes()
        };
        let now = stranger.unix_s();
        let unasked = message(HandshakeKind::Accept, NodeId(9), now);
        let stale = message(HandshakeKind::Request, NodeId(9), now - 301);
        let other = message(HandshakeKind::Request, NodeId(1), now);
        for bytes in [unasked, stale, other, b"GET / HTTP/1.1\r\n".to_vec()] {
            send(bytes).await;
        }
        // A fresh one shows that those before it have been looked at, and its repeat is known.
        let fresh = message(HandshakeKind::Request, NodeId(9), now);
        send(fresh.clone()).await;
        until("the request", || a.agent().pending().len() == 1).await;
        assert!(a.agent().trusted().is_empty());
        a.agent().reject(NodeId(9), "").await.expect("it waits");
        let before = network.calls("lookup");
        send(fresh).await;
        until("the repeat", || network.calls("lookup") > before).await;
        tokio::task::yield_now().await;
        assert!(a.agent().pending().is_empty());
    });
}
