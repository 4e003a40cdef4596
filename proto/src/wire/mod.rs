//! Bytes on the wire: geometry, the packet header, the kinds of datagram, beacon messages.

pub mod limits;
