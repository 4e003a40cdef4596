//! Frames captured from a released daemon (node 1) and a scripted peer (node 28).

use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use aws_lc_rs::hmac;

use super::handshake::{LocalKey, verify};
use super::keys::{NonceCounter, own_prefix};
use super::seal::seal_datagram;
use crate::fault::DropReason;
use crate::identity::{Identity, PublicKey};
use crate::ids::NodeId;
use crate::time::Time;
use crate::wire::datagram::{Announcement, Datagram};
use crate::wire::header::{PacketFields, Protocol};
use crate::wire::limits::{PACKET_HEADER_LEN, SEALED_HEADER_LEN, TAG_LEN};

const OURS: NodeId = NodeId(28);
const THEIRS: NodeId = NodeId(1);

const PRIVATE: &str = "0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20";
const OUR_ANNOUNCEMENT: &str = "50494c41 0000001c \
    07a37cbc142093c8b755dc1b10e86cb426374ad16aa853ed0bdfc0b2b86d1c7c \
    195e41bcd577fca6dab42d7a59a6728431c983ca67846cc56c29e73c6cfc736e \
    440be3e6eba01cf4d038843e8e04708f085fff783810ec2812b94acdd105f945 \
    679dab3dc11bdc4797a468542b038126018cec15cb2a46d8d5165f1f00c18603";
const OUR_REQUEST: &str = "50494c4b 0000001c \
    07a37cbc142093c8b755dc1b10e86cb426374ad16aa853ed0bdfc0b2b86d1c7c";
const THEIR_ANNOUNCEMENT: &str = "50494c41 00000001 \
    1634b3e576a987c64f6006debee1f1f55c16f6961c98ef4f4eee1d663b733618 \
    9901c02b05906a6fe9d3b76bff0f53f86ed75d70b6b9e35b50df2827672b98e7 \
    6805af4c689cb804ae330ca8dd1c2a85fd5e3338e38cce6ef8feb6d89bc4a643 \
    98d5030c2f0af9a34774c0f52e85db4ad0c74bdc8cc9f9ef1f965ff6d6e7f904";
const SHARED: &str = "8dc0eba5af9865c1a538cbea3ac6aabfa6e006ccbd9b0f6a2ace7f32b240b17f";
const PSEUDORANDOM: &str = "55349af6144ad1594781552c9280bfe56dcf457b811ee1cfd1f80401b9cfcb39";
const SESSION_KEY: &str = "64bd2c2f1fa6ee7aedc7e2470c70fcfea1c46027954b97f37a3bd543f2710e48";

const PING: &str = "10 03 0005 00000000001c 000000000001 1388 0000 00000007 00000000 0000 e7426d07 \
    68656c6c6f";
const PING_SEALED: &str = "50494c53 0000001c a1b2c3d4 0000000000000001 \
    9e1c1f35f9087d27cebf856ff37c41154f50879df24f6d0e39e61d0e460ba23e4cacdf8c7940e8191f30c66b3dedbc\
    8e2711108cb4a713";
const PONG: &str = "12 03 0005 000000000001 00000000001c 0000 1388 00000007 00000008 0000 fb892754 \
    68656c6c6f";
const PONG_SEALED: &str = "50494c53 00000001 bcc3e3bb 0000000000000001 \
    18da19047ab26938338c436174f778ac9ee198322de658f2f514b248d735832b7dd6c76250fded7cdaef6e4a04a121\
    027bace8dae82002";
const SYN: &str = "11 01 0000 00000000001c 000000000001 c351 0007 00000000 00000000 0200 cbec186e";
const SYN_SEALED: &str = "50494c53 0000001c a1b2c3d4 0000000000000002 \
    f971235fd9d06e578a2c9219378b29d61dbbe4b36f955b76ae0686691efad2f6300646b2caef35367199e20b64fa03\
    d20cde";
const SYN_ACK: &str =
    "13 01 0000 000000000001 00000000001c 0007 c351 00000000 00000001 0200 ceb7eb91";
const SYN_ACK_SEALED: &str = "50494c53 00000001 bcc3e3bb 0000000000000002 \
    56fd4ad9ee339c0eeb971d142823d7b4b28ae6050c3f1d4101f7880cf32eb5788e5ceb9e626f9252601ed3860d0754\
    abd969";
const SACK: &str = "12 01 000d 000000000001 00000000001c 0007 c351 00000001 00000001 0200 34aa7ee7 \
    5341434b 01 0000000b 00000015";
const SACK_SEALED: &str = "50494c53 00000001 bcc3e3bb 0000000000000003 \
    6e93cf3370c7802c2329890cd7d898c887bfb9505175e290a977a31a811a9d23bf4dfdbc4ace437b07de224fe8882a\
    e3179c69ef4ce48ff29c4c3909cbe0e7";
const DATA: &str = "12 01 000a 00000000001c 000000000001 c351 0007 0000000b 00000001 0200 0af7cd4d \
    42424242424242424242";
const FIN: &str = "14 01 0000 00000000001c 000000000001 c351 0007 00000001 00000000 0000 f121734b";
const FIN_ACK: &str =
    "16 01 0000 000000000001 00000000001c 0007 c351 00000001 00000002 0000 c5929a29";

#[test]
fn both_captured_announcements_verify_and_no_changed_one_does() {
    for (text, node) in [(OUR_ANNOUNCEMENT, OURS), (THEIR_ANNOUNCEMENT, THEIRS)] {
        let announcement = announcement(&hex(text));
        assert_eq!(announcement.sender, node);
        let identity = PublicKey(announcement.identity);
        assert_eq!(verify(&announcement, &identity), Ok(()));
        assert_eq!(announcement.to_bytes().to_vec(), hex(text));

        let stranger = PublicKey([9; 32]);
        assert_eq!(
            verify(&announcement, &stranger),
            Err(DropReason::WrongIdentity)
        );
        let other_node = Announcement {
            sender: NodeId(7),
            ..announcement
        };
        assert_eq!(
            verify(&other_node, &identity),
            Err(DropReason::BadSignature)
        );
        let mut other_key = announcement;
        other_key.key[31] ^= 1;
        assert_eq!(verify(&other_key, &identity), Err(DropReason::BadSignature));
    }
}

#[test]
fn the_key_schedule_passes_through_the_captured_values() {
    let private = PrivateKey::from_private_key(&X25519, &hex(PRIVATE)).expect("32 bytes");
    let theirs = announcement(&hex(THEIR_ANNOUNCEMENT)).key;
    let secret = agree(
        &private,
        UnparsedPublicKey::new(&X25519, theirs),
        (),
        |secret| Ok(secret.to_vec()),
    );
    assert_eq!(secret, Ok(hex(SHARED)));
    let pseudorandom = hmac_sha256(&[0; 32], &hex(SHARED));
    assert_eq!(pseudorandom, hex(PSEUDORANDOM));
    assert_eq!(
        hmac_sha256(&pseudorandom, b"pilot-tunnel-v1\x01"),
        hex(SESSION_KEY)
    );
}

#[test]
fn our_key_announces_itself_as_captured() {
    let local = local_key();
    let sent = announcement(&local.announcement());
    assert_eq!(sent.sender, OURS);
    assert_eq!(sent.key, announcement(&hex(OUR_ANNOUNCEMENT)).key);
    assert_eq!(
        verify(&sent, &Identity::from_seed([5; 32]).public()),
        Ok(())
    );
    assert_eq!(local.request().to_vec(), hex(OUR_REQUEST));
    let low_order = [0; 32];
    assert!(local.session_key(&low_order).is_none());
}

#[test]
fn captured_datagrams_open_to_the_captured_packets() {
    let key = session_key();
    for (sealed, inner) in [
        (PING_SEALED, PING),
        (PONG_SEALED, PONG),
        (SYN_SEALED, SYN),
        (SYN_ACK_SEALED, SYN_ACK),
        (SACK_SEALED, SACK),
    ] {
        let mut bytes = hex(sealed);
        let Ok(Datagram::Sealed(view)) = Datagram::parse(&mut bytes) else {
            panic!("{sealed} is a sealed datagram")
        };
        let nonce = (view.prefix, view.counter);
        let mut apart = vec![0; view.body.len() - TAG_LEN];
        assert!(key.open_apart(nonce, view.sender, view.body, &mut apart));
        assert_eq!(apart, hex(inner));
        let opened = key
            .open(nonce, view.sender, view.body)
            .expect("the tag verifies");
        assert_eq!(opened, hex(inner));
        assert!(key.open(nonce, view.sender, view.body).is_none());
    }
}

#[test]
fn the_same_packet_under_the_same_nonce_is_sealed_to_the_same_bytes() {
    let key = session_key();
    let mut counter = NonceCounter::default();
    // The top bit says that 28 is the greater node; the captured prefix has it.
    let prefix = own_prefix([0x21, 0xb2, 0xc3, 0xd4], OURS, THEIRS);
    for (inner, sealed) in [(PING, PING_SEALED), (SYN, SYN_SEALED)] {
        let packet = hex(inner);
        let (fields, payload_len) = PacketFields::parse(&packet).expect("captured");
        let mut datagram = vec![0; SEALED_HEADER_LEN + packet.len() + TAG_LEN];
        datagram[SEALED_HEADER_LEN + PACKET_HEADER_LEN..][..payload_len]
            .copy_from_slice(&packet[PACKET_HEADER_LEN..]);
        let nonce = counter.next(prefix);
        let length = seal_datagram(&key, nonce, &fields, &mut datagram, payload_len);
        assert_eq!(datagram[..length], hex(sealed));
    }
}

#[test]
fn captured_packets_are_read_and_written_alike() {
    for text in [PING, PONG, SYN, SYN_ACK, SACK, DATA, FIN, FIN_ACK] {
        let packet = hex(text);
        let (fields, payload_len) = PacketFields::parse(&packet).expect(text);
        assert_eq!(packet.len(), PACKET_HEADER_LEN + payload_len);
        let mut again = packet.clone();
        again[..PACKET_HEADER_LEN].fill(0);
        fields.write(&mut again);
        assert_eq!(again, packet);

        // Surplus bytes are ignored; a missing one is not.
        let mut longer = packet.clone();
        longer.push(0xAA);
        assert_eq!(PacketFields::parse(&longer), Ok((fields, payload_len)));
        let shorter = &packet[..packet.len() - 1];
        assert_eq!(PacketFields::parse(shorter), Err(DropReason::BadPacket));
        for at in 0..packet.len() {
            let mut flipped = packet.clone();
            flipped[at] ^= 0x10;
            assert!(
                PacketFields::parse(&flipped).is_err(),
                "byte {at} of {text}"
            );
        }
    }
    let (fields, _) = PacketFields::parse(&hex(SYN)).expect("captured");
    assert_eq!(
        (fields.protocol, fields.flags, fields.window),
        (Protocol::Stream, 1, 512)
    );
    assert_eq!(fields.source.to_string(), "0:0000.0000.001C:50001");
    assert_eq!(fields.destination.to_string(), "0:0000.0000.0001:7");
}

#[test]
fn no_protocol_but_three() {
    let mut packet = hex(SYN);
    for number in [0, 4, 255] {
        packet[1] = number;
        packet[30..34].fill(0);
        let checksum = crc32fast::hash(&packet).to_be_bytes();
        packet[30..34].copy_from_slice(&checksum);
        assert_eq!(
            PacketFields::parse(&packet),
            Err(DropReason::UnknownProtocol)
        );
    }
}

fn local_key() -> LocalKey {
    LocalKey::new(
        &Identity::from_seed([5; 32]),
        OURS,
        Time::ZERO,
        &mut |space| {
            space.copy_from_slice(&hex(PRIVATE));
        },
    )
}

fn session_key() -> super::keys::SessionKey {
    let theirs = announcement(&hex(THEIR_ANNOUNCEMENT)).key;
    local_key()
        .session_key(&theirs)
        .expect("a point of high order")
}

fn announcement(bytes: &[u8]) -> Announcement {
    match Datagram::parse(&mut bytes.to_vec()) {
        Ok(Datagram::Announcement(announcement)) => announcement,
        other => panic!("an announcement, not {other:?}"),
    }
}

fn hmac_sha256(key: &[u8], message: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message)
        .as_ref()
        .to_vec()
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .bytes()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    digits
        .chunks(2)
        .map(|pair| {
            let pair = str::from_utf8(pair).expect("hex");
            u8::from_str_radix(pair, 16).expect("hex")
        })
        .collect()
}

#[test]
fn a_nonce_is_handed_out_once_and_never_by_both_ends() {
    let ours = own_prefix([0xFF; 4], OURS, THEIRS);
    let theirs = own_prefix([0xFF; 4], THEIRS, OURS);
    assert_eq!((ours, theirs), ([0xFF; 4], [0x7F, 0xFF, 0xFF, 0xFF]));
    let mut counter = NonceCounter::default();
    assert_eq!(
        (counter.next(ours), counter.next(ours)),
        ((ours, 1), (ours, 2))
    );
    // Another session of the same key goes on where the first one stands.
    assert_eq!(counter.next(theirs), (theirs, 3));
    assert_eq!(counter.used(), 3);
}
