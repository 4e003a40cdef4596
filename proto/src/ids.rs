//! The register of id kinds: one newtype each, so that no number stands for two things.

use core::fmt;
use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// A Pilot node, numbered by the registry from 1. Stands in clear in every tunnel frame.
    NodeId(u32)
);
id!(
    /// An offer, drawn at random by its requester; unique at one registry.
    OfferId(u64)
);
id!(
    /// An engagement, numbered by the registry from 1 in the order of its log.
    EngagementId(u64)
);
id!(
    /// An engagement inside one tunnel: chosen by the requester, below
    /// [`crate::wire::limits::CHANNELS_PER_TUNNEL_MAX`].
    ChannelId(u16)
);
id!(
    /// A Pilot stream of this node, as the programs of its host name it.
    ConnectionId(u32)
);
