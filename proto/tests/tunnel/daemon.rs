//! A scripted daemon of the released kind: one static X25519 key for every peer, sessions that
//! are replaced at once by any signed announcement, silence for an announcement that it holds
//! already, a request answered by an announcement, and a session deleted after five failures.

use std::net::SocketAddr;
use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use ramjet_proto::addr::{Address, SocketAddress};
use ramjet_proto::identity::{Identity, PublicKey};
use ramjet_proto::ids::NodeId;
use ramjet_proto::time::Time;
use ramjet_proto::wire::datagram::{self, Announcement, Datagram, write_sealed_header};
use ramjet_proto::wire::header::{FLAG_ACK, PacketFields, Protocol};
use ramjet_proto::wire::limits::{SEAL_OVERHEAD, SEALED_HEADER_LEN, TAG_LEN};

use super::pair::{PAYLOAD_AT, Random};

struct Session {
    key: LessSafeKey,
    remote: [u8; 32],
    prefix: [u8; 4],
    counter: u64,
    since: Time,
}

/// The daemon.
pub(crate) struct Daemon {
    pub(crate) id: NodeId,
    pub(crate) identity: Identity,
    pub(crate) address: SocketAddr,
    pub(crate) peer: NodeId,
    pub(crate) peer_identity: PublicKey,
    pub(crate) peer_address: SocketAddr,
    /// Payloads of the packets it received.
    pub(crate) delivered: Vec<Vec<u8>>,
    pub(crate) sent: Vec<Vec<u8>>,
    /// Packets that wait for a key.
    pub(crate) pending: Vec<Vec<u8>>,
    pub(crate) sessions: u32,
    random: Random,
    private: [u8; 32],
    session: Option<Session>,
    failures: u32,
}

impl Daemon {
    pub(crate) fn new(id: u32, peer: NodeId, peer_identity: PublicKey, seed: u64) -> Self {
        let mut random = Random(seed);
        let mut private = [0; 32];
        random.fill(&mut private);
        Daemon {
            id: NodeId(id),
            identity: Identity::from_seed([0xDA; 32]),
            address: super::pair::address_of(id),
            peer,
            peer_identity,
            peer_address: super::pair::address_of(peer.0),
            delivered: Vec::new(),
            sent: Vec::new(),
            pending: Vec::new(),
            sessions: 0,
            random,
            private,
            session: None,
            failures: 0,
        }
    }

    /// A new process: a new key, and nothing is remembered.
    pub(crate) fn restart(&mut self) {
        self.random.fill(&mut self.private);
        self.lose_session();
    }

    /// As after five failures: the session goes, the key stays.
    pub(crate) fn lose_session(&mut self) {
        self.session = None;
        self.failures = 0;
    }

    pub(crate) fn has_session(&self) -> bool {
        self.session.is_some()
    }

    fn x25519(&self) -> (PrivateKey, [u8; 32]) {
        let private = PrivateKey::from_private_key(&X25519, &self.private).expect("32 bytes");
        let public = private.compute_public_key().expect("public");
        let public = public.as_ref().try_into().expect("32 bytes");
        (private, public)
    }

    pub(crate) fn announcement(&self) -> Vec<u8> {
        let (_, key) = self.x25519();
        let mut signed = b"auth".to_vec();
        signed.extend_from_slice(&self.id.0.to_be_bytes());
        signed.extend_from_slice(&key);
        let announcement = Announcement {
            sender: self.id,
            key,
            identity: self.identity.public().0,
            signature: self.identity.sign(&signed),
        };
        announcement.to_bytes().to_vec()
    }

    pub(crate) fn announce(&mut self, request: bool) {
        self.sent.push(self.announcement());
        if request {
            self.sent
                .push(datagram::request(self.id, self.x25519().1).to_vec());
        }
    }

    /// Seals a datagram packet, or keeps it until there is a key.
    pub(crate) fn send(&mut self, payload: &[u8]) {
        if self.session.is_none() {
            self.pending.push(payload.to_vec());
            self.announce(false);
            return;
        }
        let fields = self.fields(self.id, Protocol::Datagram);
        let datagram = self.seal(&fields, payload);
        self.sent.push(datagram);
    }

    /// The header of a packet to the peer that claims to come from `source`.
    pub(crate) fn fields(&self, source: NodeId, protocol: Protocol) -> PacketFields {
        let end = |node, port| SocketAddress {
            address: Address::backbone(node),
            port,
        };
        PacketFields {
            flags: 0,
            protocol,
            source: end(source, 5_000),
            destination: end(
                self.peer,
                if protocol == Protocol::Control {
                    0
                } else {
                    1_000
                },
            ),
            sequence: 0,
            acknowledgment: 0,
            window: 0,
        }
    }

    pub(crate) fn seal(&mut self, fields: &PacketFields, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; payload.len() + SEAL_OVERHEAD];
        bytes[PAYLOAD_AT..][..payload.len()].copy_from_slice(payload);
        let end = bytes.len() - TAG_LEN;
        fields.write(&mut bytes[SEALED_HEADER_LEN..end]);
        self.seal_packet(&mut bytes);
        bytes
    }

    /// Seals whatever stands between header and tag.
    pub(crate) fn seal_packet(&mut self, bytes: &mut [u8]) {
        let id = self.id;
        let session = self.session.as_mut().expect("it has a session");
        session.counter += 1;
        write_sealed_header(bytes, id, session.prefix, session.counter);
        let end = bytes.len() - TAG_LEN;
        let nonce = nonce(session.prefix, session.counter);
        let text = &mut bytes[SEALED_HEADER_LEN..end];
        let aad = Aad::from(id.0.to_be_bytes());
        let tag = session
            .key
            .seal_in_place_separate_tag(nonce, aad, text)
            .expect("sealed");
        bytes[end..].copy_from_slice(tag.as_ref());
    }

    pub(crate) fn receive(&mut self, now: Time, source: SocketAddr, datagram: &[u8]) {
        let mut bytes = datagram.to_vec();
        match Datagram::parse(&mut bytes).expect("a peer sends nothing else") {
            Datagram::Announcement(announcement) => self.announced(now, source, &announcement),
            Datagram::Request(_) => self.announce(false),
            Datagram::Sealed(sealed) => {
                let (prefix, counter) = (sealed.prefix, sealed.counter);
                let body = sealed.body.to_vec();
                self.sealed(now, source, prefix, counter, body);
            }
            Datagram::Plaintext | Datagram::Punch | Datagram::Beacon(_) => {}
        }
    }

    fn announced(&mut self, now: Time, source: SocketAddr, announcement: &Announcement) {
        assert_eq!(announcement.identity, self.peer_identity.0);
        self.peer_address = source;
        if self
            .session
            .as_ref()
            .is_some_and(|session| session.remote == announcement.key)
        {
            return;
        }
        let mut prefix = [0; 4];
        self.random.fill(&mut prefix);
        let (private, _) = self.x25519();
        let remote = UnparsedPublicKey::new(&X25519, announcement.key);
        let key = agree(&private, remote, (), |secret| {
            let extracted = Salt::new(HKDF_SHA256, &[]).extract(secret);
            let expanded = extracted
                .expand(&[b"pilot-tunnel-v1"], &AES_256_GCM)
                .map_err(|_| ())?;
            Ok(LessSafeKey::new(UnboundKey::from(expanded)))
        });
        let key = key.expect("a key");
        self.session = Some(Session {
            key,
            remote: announcement.key,
            prefix,
            counter: 0,
            since: now,
        });
        self.sessions += 1;
        self.failures = 0;
        // The queue leaves before the announcement that would make it readable.
        for payload in std::mem::take(&mut self.pending) {
            self.send(&payload);
        }
        self.announce(false);
    }

    fn sealed(
        &mut self,
        now: Time,
        source: SocketAddr,
        prefix: [u8; 4],
        counter: u64,
        mut body: Vec<u8>,
    ) {
        let Some(session) = &self.session else {
            return self.announce(true);
        };
        let aad = Aad::from(self.peer.0.to_be_bytes());
        let Ok(packet) = session
            .key
            .open_in_place(nonce(prefix, counter), aad, &mut body)
        else {
            self.failures += 1;
            if self.failures >= 5 && now.since(session.since) >= Duration::from_secs(3) {
                self.lose_session();
                self.announce(true);
            }
            return;
        };
        self.failures = 0;
        self.peer_address = source;
        let (fields, _) = PacketFields::parse(packet).expect("a sound packet");
        let payload = packet[34..].to_vec();
        if fields.protocol == Protocol::Control && fields.destination.port == 0 {
            if !payload.is_empty() && fields.flags & FLAG_ACK == 0 {
                let mut pong = fields;
                pong.flags = FLAG_ACK;
                pong.source = SocketAddress {
                    port: 0,
                    ..fields.destination
                };
                pong.destination = fields.source;
                pong.acknowledgment = fields.sequence + 1;
                let datagram = self.seal(&pong, &payload);
                self.sent.push(datagram);
            }
            return;
        }
        self.delivered.push(payload);
    }
}

fn nonce(prefix: [u8; 4], counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&prefix);
    bytes[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}
