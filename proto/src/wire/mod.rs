//! Bytes on the wire: geometry, the packet header, the kinds of datagram, beacon messages.
//!
//! | part | holds |
//! |---|---|
//! | [`limits`] | every length and its relation to the others |
//! | [`datagram`] | the five kinds of tunnel datagram, told apart by their magic |
//! | [`header`] | the 34-byte packet header inside a sealed datagram, and its checksum |
//! | [`beacon`] | what nodes and the beacon say to each other |
//!
//! Everything here is a pure function of bytes. A parser answers with a view or with the
//! [`DropReason`](crate::fault::DropReason) under which the caller counts the datagram; none can
//! panic, whatever the bytes.

pub mod beacon;
pub mod datagram;
pub mod header;
pub mod limits;
