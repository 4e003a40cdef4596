//! What was answered is on disk: restarts, and silences that cost nobody polo.

use std::net::{SocketAddr, TcpListener};

use ramjet_proto::market::AcceptFrom;
use ramjet_proto::market::message::{Push, ReplyBody, RequestBody};
use ramjet_registry::{Config, Registry, RegistryError};

use crate::client::{Connection, Node, config, engage, granted, receipt, signed, start};

fn on_disk(directory: &std::path::Path) -> Config {
    Config {
        state_dir: Some(directory.join("state")),
        ..config()
    }
}

#[test]
fn a_restart_keeps_identity_nodes_polo_engagements_and_open_offers() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let registry = start(on_disk(directory.path()));
    let address = registry.tcp_addr();
    let key = registry.public_key();
    let (mut requester, mut worker) = (Node::join(address, 1), Node::join(address, 2));
    worker.advertise("echo", true, AcceptFrom::Gate);
    let grant = engage(&mut requester, &mut worker, "echo");
    let first = receipt(&grant, 1, 10, None);
    worker.settle(&signed(first, &requester, &worker));
    let waiting = requester.offer("sum", 300_000);
    requester.submit(&waiting);
    // Mid-way: connections are open and an offer waits.
    drop(registry);

    let registry = start(on_disk(directory.path()));
    let address = registry.tcp_addr();
    assert_eq!(registry.public_key(), key, "grants stay verifiable");
    let (before, after) = (requester.id, Node::join(address, 1).id);
    assert_eq!(before, after, "the same key is the same node");
    requester.reconnect(address);
    worker.reconnect(address);
    assert_eq!(worker.polo(), 1);
    let ReplyBody::Settled { repeated: true, .. } =
        worker.settle(&signed(first, &requester, &worker))
    else {
        panic!("the receipt was settled before")
    };
    let second = receipt(&grant, 2, 11, Some(&first));
    let reply = worker.settle(&signed(second, &requester, &worker));
    assert!(
        matches!(
            reply,
            ReplyBody::Settled {
                repeated: false,
                ..
            }
        ),
        "{reply:?}"
    );

    worker.advertise("sum,echo", true, AcceptFrom::Anyone);
    assert!(matches!(worker.connection.push(), Push::Settled { .. }));
    let told = Push::Notify {
        offer: waiting.clone(),
        requester_polo: 0,
    };
    assert_eq!(worker.connection.push(), told, "the offer still waits");
    let next = granted(worker.accept(waiting.offer)).grant.engagement;
    assert_eq!(next.0, grant.grant.engagement.0 + 1, "numbers go on");
    let list = RequestBody::Engagements {
        who: None,
        limit: 10,
    };
    let ReplyBody::Engagements { engagements } = worker.connection.ask(list) else {
        panic!("no list")
    };
    assert_eq!(engagements.len(), 2);
}

#[test]
fn an_offer_that_was_open_while_the_registry_was_silent_expires_free_of_charge() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let registry = start(on_disk(directory.path()));
    let mut requester = Node::join(registry.tcp_addr(), 1);
    // Long enough that the connection is proven again before it runs out.
    let offer = requester.offer("echo", 1_500);
    requester.submit(&offer);
    drop(registry);
    let registry = start(on_disk(directory.path()));
    requester.reconnect(registry.tcp_addr());
    let Push::Expired {
        offer: expired,
        polo,
        ..
    } = requester.connection.push()
    else {
        panic!("no expiry")
    };
    assert_eq!((expired, polo), (offer.offer, (0, 0)));
}

#[test]
fn a_second_registry_on_the_same_state_or_port_says_what_is_in_the_way() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let registry = start(on_disk(directory.path()));
    let error = Registry::start(on_disk(directory.path())).expect_err("the store is held");
    assert!(
        matches!(error, RegistryError::StateLocked { .. }),
        "{error}"
    );
    let taken = Config {
        listen: registry.tcp_addr(),
        ..config()
    };
    let error = Registry::start(taken).expect_err("the port is held");
    let text = error.to_string();
    assert!(
        text.contains(&registry.tcp_addr().to_string()) && text.contains("port 0"),
        "{text}"
    );
    let mut bad = config();
    bad.limits.batch_max = 0;
    let error = Registry::start(bad).expect_err("nothing would ever be answered");
    assert!(error.to_string().contains("batch_max"), "{error}");
}

#[test]
fn shutdown_frees_the_port_and_ends_the_connections() {
    let registry = start(config());
    let address: SocketAddr = registry.tcp_addr();
    let mut connection = Connection::open(address);
    connection.ask(RequestBody::Engagements {
        who: None,
        limit: 1,
    });
    registry.shutdown();
    assert_eq!(
        connection.receive_bytes(),
        None,
        "the connection was closed"
    );
    TcpListener::bind(address).expect("the port is free");
}
