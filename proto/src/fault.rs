//! Why something was dropped: one closed list, shared by counters, logs and tests.
//!
//! The law of conservation: datagrams received = delivered + handled by the tunnel + dropped, each
//! drop under one [`DropReason`].
//! Frames have their own law: frames parsed = frames acted on + sum of the frame reasons.

/// Declares an enum, its labels and the array of all its members together, so that nothing can be
/// counted without a name.
#[macro_export]
macro_rules! labelled_enum {
    ($(#[$doc:meta])* $name:ident {
        $($(#[doc = $help:literal])+ $variant:ident => $label:literal,)*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[doc = $help])+ $variant,)* }

        impl $name {
            /// Every member, in declaration order.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];
            /// How many members there are: the length of an array of counters.
            pub const COUNT: usize = Self::ALL.len();

            /// The label used in metrics, logs and `--json`.
            pub const fn label(self) -> &'static str {
                match self { $($name::$variant => $label,)* }
            }

            /// What it means: its doc comment, for whoever shows it to people.
            pub const fn help(self) -> &'static str {
                match self { $($name::$variant => concat!($($help),+).trim_ascii(),)* }
            }

            /// Position in [`Self::ALL`]: the index of its counter.
            pub const fn index(self) -> usize {
                self as usize
            }
        }
    };
}

labelled_enum! {
    /// Why a datagram, or a frame inside one, was dropped.
    DropReason {
        // Room 2, datagram.
        /// Shorter than the smallest frame of its kind.
        TooShort => "too_short",
        /// Longer than its kind allows.
        TooLong => "too_long",
        /// The first bytes are no magic of ours and no beacon message.
        UnknownMagic => "unknown_magic",
        /// A plaintext (PILT) frame: this node speaks only encrypted tunnels.
        Plaintext => "plaintext",
        /// The receive buffer was too small and the kernel cut the datagram.
        Truncated => "truncated",
        /// A beacon message from an address that is not our beacon, or malformed.
        BadBeacon => "bad_beacon",
        /// The frame claims to come from ourselves.
        FromSelf => "from_self",
        // Room 3, tunnel.
        /// No session with that node; a key request went out if the limit allowed.
        NoSession => "no_session",
        /// The tag does not verify under any live key.
        BadTag => "bad_tag",
        /// This counter was already accepted under this nonce prefix.
        Replay => "replay",
        /// The counter is older than the replay window.
        OutsideWindow => "outside_window",
        /// A key exchange whose Ed25519 key is not the registry's key for that node.
        WrongIdentity => "wrong_identity",
        /// A key exchange whose signature does not verify, or a low-order point.
        BadSignature => "bad_signature",
        /// More key exchanges than the limit allows.
        KeyExchangeLimited => "key_exchange_limited",
        /// No room in the table of tunnels.
        TunnelsFull => "tunnels_full",
        /// The registry has no key for that node.
        UnknownPeer => "unknown_peer",
        // Inner packet.
        /// The packet header is short, has a wrong version or an impossible length.
        BadPacket => "bad_packet",
        /// The CRC-32 of the inner packet is wrong.
        BadChecksum => "bad_checksum",
        /// The inner source node is not the node whose key sealed it.
        SpoofedSource => "spoofed_source",
        /// A packet for another node.
        WrongDestination => "wrong_destination",
        /// A protocol number that is none of stream, datagram, control.
        UnknownProtocol => "unknown_protocol",
        /// A protocol or port that this node does not serve.
        UnservedPort => "unserved_port",
        // Streams and datagrams.
        /// A packet of a stream that is not here, and no SYN.
        UnknownStream => "unknown_stream",
        /// A SYN or a datagram of a node that may not reach this one's ports.
        Untrusted => "untrusted",
        /// More SYNs than the limits allow.
        SynLimited => "syn_limited",
        // Room 4, frames.
        /// The payload is no frame train of ours, or of another version.
        BadTrain => "bad_train",
        /// A frame header that runs past the end of its train, or contents that its kind forbids.
        BadFrame => "bad_frame",
        /// A frame kind that this version does not know.
        UnknownFrame => "unknown_frame",
        /// A frame for a channel that is not open.
        UnknownChannel => "unknown_channel",
        /// A slot beyond the credits of the channel.
        SlotOutOfRange => "slot_out_of_range",
        /// A generation older than the slot's: a late duplicate.
        Stale => "stale",
        /// A generation that skips ahead of the slot's, or a frame that its state forbids.
        OutOfOrder => "out_of_order",
        /// The same frame again; it was answered again where an answer is owed.
        Duplicate => "duplicate",
        // Local pressure.
        /// A part of a long payload or result for which there is no memory now; it comes again.
        MemoryLimit => "memory_limit",
        /// No send buffer was free; the peer will ask again.
        NoSendBuffer => "no_send_buffer",
        /// The mailbox to the control thread was full.
        ControlBusy => "control_busy",
        /// The kernel refused to send it.
        SendFailed => "send_failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_distinct_and_indices_follow_declaration() {
        let mut labels: Vec<_> = DropReason::ALL.iter().map(|r| r.label()).collect();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), DropReason::COUNT);
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), index);
        }
        assert_eq!(
            DropReason::TooShort.help(),
            "Shorter than the smallest frame of its kind."
        );
    }
}
