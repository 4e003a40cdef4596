//! Info and health: what the node is and carries, with the members that a daemon's have.

use std::rc::Rc;

use ramjet_proto::addr::Address;
use serde_json::{Value, json};

use super::Hub;
use crate::control::handle::{Ask, Card};
use crate::control::ports::{ConnectionRow, PeerRow};

/// What this node does of what newer command lines ask for before they use it.
const FEATURES: [&str; 4] = [
    "reply_window",
    "dial_awaits_key",
    "key_request",
    "dgram_confirm",
];
/// Rows of streams, and of tunnels, in one answer: what a frame holds.
const ROWS_MAX: usize = 1_000;
/// Bytes that a window counts as one segment.
const WINDOW_SEGMENT: usize = 4_096;
/// The version as the registry is told it.
const VERSION: &str = concat!("ramjet-", env!("CARGO_PKG_VERSION"));

/// What both answers are made of.
struct Look {
    card: Card,
    connections: Vec<ConnectionRow>,
    peers: Vec<PeerRow>,
}

impl Look {
    fn counter(&self, name: &str) -> u64 {
        self.card.counters.get(name).copied().unwrap_or(0)
    }

    fn peers_that(&self, holds: impl Fn(&PeerRow) -> bool) -> usize {
        self.peers.iter().filter(|row| holds(row)).count()
    }

    /// Streams that carry data: those that end are shown but not counted, as in a daemon.
    fn established(&self) -> usize {
        let established = |row: &&ConnectionRow| row.state == "ESTABLISHED";
        self.connections.iter().filter(established).count()
    }
}

impl Hub {
    async fn look(&self) -> Result<Look, String> {
        let card = self.ask(Ask::Card).await?;
        let (connections, peers) = self.ports.rows().await;
        Ok(Look {
            card,
            connections,
            peers,
        })
    }

    /// The answer to health.
    pub(super) async fn health(self: Rc<Self>) -> Result<Value, String> {
        let look = self.look().await?;
        Ok(json!({
            "status": "ok",
            "uptime_seconds": look.card.uptime_s,
            "connections": look.established(),
            "peers": look.peers.len(),
            "encrypted_peers": look.peers_that(|row| row.encrypted),
            "authenticated_peers": look.peers_that(|row| row.authenticated),
            "relay_peer_count": look.peers_that(|row| row.relay),
            "bytes_sent": look.counter("bytes_sent"),
            "bytes_recv": look.counter("bytes_received"),
            "handshake_pending_count": self.pending_count(),
            "accept_queue_drops": self.accepts_dropped(),
            "beacon_addr": beacon_text(&look.card),
            "webhook_circuit_skips": 0,
            "webhook_queue_dropped": 0,
        }))
    }

    /// The answer to info.
    pub(super) async fn info(self: Rc<Self>) -> Result<Value, String> {
        let look = self.look().await?;
        let card = &look.card;
        let names = self.names(&look.connections);
        let rows = look.connections.iter().zip(names).take(ROWS_MAX);
        let connections: Vec<Value> = rows.map(|(row, id)| connection_json(row, id)).collect();
        let peers: Vec<Value> = look.peers.iter().take(ROWS_MAX).map(peer_json).collect();
        let mut info = json!({
            "node_id": card.node,
            "address": card.address,
            "hostname": card.hostname.as_deref().unwrap_or_default(),
            "email": card.owner,
            "version": VERSION,
            "public_key": card.key.to_base64(),
            "identity": true,
            "endpoint": card.endpoint,
            "beacon_addr": beacon_text(card),
            "transport": "udp",
            "motd": "",
            "networks": null,
            "features": FEATURES,
            "uptime_secs": card.uptime_s,
            "ports": self.ports.listening() + usize::from(card.echo),
            "connections": look.established(),
            "conn_list": connections,
            "peers": look.peers.len(),
            "peer_list": peers,
            "encrypt": true,
            "encrypted_peers": look.peers_that(|row| row.encrypted),
            "authenticated_peers": look.peers_that(|row| row.authenticated),
            "relay_peer_count": look.peers_that(|row| row.relay),
            "bytes_sent": look.counter("bytes_sent"),
            "bytes_recv": look.counter("bytes_received"),
            "pkts_sent": look.counter("datagrams_sent"),
            "pkts_recv": look.counter("datagrams_received"),
            "tunnel_encryption_success": look.counter("datagrams_sent"),
            "tunnel_encryption_failure": look.counter("sends_dropped"),
            "handshake_pending_count": self.pending_count(),
            "accept_queue_drops": self.accepts_dropped(),
            "webhook_circuit_skips": 0,
            "webhook_queue_dropped": 0,
        });
        if look.peers.len() > ROWS_MAX {
            info["peer_list_truncated"] = Value::from(true);
        }
        Ok(info)
    }

    /// The number by which programs know each stream. Streams of the node's services get one when
    /// they are first shown.
    fn names(&self, rows: &[ConnectionRow]) -> Vec<u32> {
        let mut live = std::mem::take(&mut *self.others.borrow_mut());
        live.retain(|id, _| rows.iter().any(|row| row.id == *id));
        self.others.replace(live);
        rows.iter().map(|row| self.name(row)).collect()
    }

    fn name(&self, row: &ConnectionRow) -> u32 {
        let connections = self.connections.borrow();
        let own = connections.values().find(|connection| {
            (
                connection.peer,
                connection.local_port,
                connection.remote_port,
            ) == (row.peer, row.local_port, row.remote_port)
        });
        if let Some(connection) = own {
            return connection.id.0;
        }
        drop(connections);
        let known = self.others.borrow().get(&row.id).copied();
        let id = known.unwrap_or_else(|| self.number_connection());
        self.others.borrow_mut().insert(row.id, id);
        id.0
    }

    /// Streams that were refused because nobody accepted those before, since the start.
    fn accepts_dropped(&self) -> u64 {
        let counters = self.counters.borrow();
        let refused = counters.get("driver_streams_refused").copied();
        refused.unwrap_or(0) + self.ports.accepts_dropped()
    }
}

fn beacon_text(card: &Card) -> String {
    card.beacon
        .map(|beacon| beacon.to_string())
        .unwrap_or_default()
}

fn peer_json(row: &PeerRow) -> Value {
    json!({
        "node_id": row.node,
        "endpoint": row.endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default(),
        "encrypted": row.encrypted,
        "authenticated": row.authenticated,
        "relay": row.relay,
    })
}

/// A row of `conn_list`. Daemons count by stream what is the path's here, or is not counted: the
/// window has no threshold of its own, losses are told by time and not by duplicates. Command lines
/// read every member as a number, so those are 0.
fn connection_json(row: &ConnectionRow, id: u32) -> Value {
    let (smoothed, variation) = row.round_trip;
    json!({
        "id": id,
        "local_port": row.local_port,
        "remote_addr": Address::backbone(row.peer),
        "remote_port": row.remote_port,
        "state": row.state,
        "cong_win": row.window,
        "ssthresh": row.window,
        "in_recovery": false,
        "in_flight": row.in_flight,
        "unacked": row.unacknowledged,
        "ooo_buf": row.out_of_order,
        "peer_recv_win": usize::from(row.peer_window) * WINDOW_SEGMENT,
        "recv_win": usize::from(row.own_window) * WINDOW_SEGMENT,
        "srtt_ms": millis(smoothed),
        "rttvar_ms": millis(variation),
        "bytes_sent": row.bytes_sent,
        "bytes_recv": row.bytes_received,
        "segs_sent": row.segments_sent,
        "segs_recv": row.segments_received,
        "retransmits": row.retransmits,
        "fast_retx": 0,
        "dup_acks": 0,
        "sack_sent": 0,
        "sack_recv": 0,
    })
}

fn millis(duration: std::time::Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
