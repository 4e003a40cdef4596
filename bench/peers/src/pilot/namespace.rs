//! A network that holds nothing but loopback.
//!
//! [`enter`] starts this program again inside a namespace of its own; [`raise_loopback`] is the
//! first thing done there, as a new namespace has its loopback interface switched off.

use std::convert::Infallible;
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, recv, sendto, socket};

use crate::failure::Failure;
use crate::helper::own_path;

/// How a namespace is made: as root, and as anyone.
const WAYS: [&[&str]; 2] = [&["--net"], &["--user", "--map-root-user", "--net"]];

/// Starts this program again with `arguments` in a namespace of its own. Returns only if that
/// cannot be done: nothing if the kernel allows no namespace.
pub(crate) fn enter(arguments: &[OsString]) -> Result<Option<Infallible>, Failure> {
    let own = own_path()?;
    for way in WAYS {
        let allowed = Command::new("unshare")
            .args(way)
            .arg("true")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if allowed.is_ok_and(|status| status.success()) {
            let error = Command::new("unshare")
                .args(way)
                .arg("--")
                .arg(&own)
                .args(arguments)
                .exec();
            return Err(Failure::at("unshare", error));
        }
    }
    Ok(None)
}

const MESSAGE_HEAD_LEN: u32 = 16;
const NEW_LINK: u16 = 16;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const ERROR: u16 = 2;
const UP: u32 = 1;
/// The first interface of every namespace.
const LOOPBACK_INDEX: i32 = 1;

/// Switches the loopback interface of this namespace on.
pub(crate) fn raise_loopback() -> Result<(), Failure> {
    let at = |error: &dyn std::fmt::Display| Failure::at("loopback of the namespace", error);
    // Protocol 0 of this family is the one about interfaces and routes.
    let socket =
        socket(AddressFamily::NETLINK, SocketType::RAW, None).map_err(|error| at(&error))?;
    let kernel = SocketAddrNetlink::new(0, 0);
    sendto(socket.as_fd(), &link_up(), SendFlags::empty(), &kernel).map_err(|error| at(&error))?;
    let mut answer = [0; 256];
    let (_, len) =
        recv(socket.as_fd(), &mut answer[..], RecvFlags::empty()).map_err(|error| at(&error))?;
    match refusal(&answer[..len.min(256)]) {
        Some(0) => Ok(()),
        Some(code) => Err(at(&std::io::Error::from_raw_os_error(-code))),
        None => Err(at(&"the kernel gave no answer that is known")),
    }
}

/// The message that sets the flag UP of interface 1 and no other.
#[expect(
    clippy::host_endian_bytes,
    reason = "the kernel's own messages are in the order of the machine"
)]
fn link_up() -> Vec<u8> {
    let mut message = Vec::with_capacity(32);
    // Head: length, type, flags, sequence, sender (0: the kernel fills it in).
    message.extend_from_slice(&(2 * MESSAGE_HEAD_LEN).to_ne_bytes());
    message.extend_from_slice(&NEW_LINK.to_ne_bytes());
    message.extend_from_slice(&(REQUEST | ACKNOWLEDGE).to_ne_bytes());
    message.extend_from_slice(&1_u32.to_ne_bytes());
    message.extend_from_slice(&0_u32.to_ne_bytes());
    // Interface: family, padding, device type, index, flags, mask of the flags that change.
    message.extend_from_slice(&[0, 0]);
    message.extend_from_slice(&0_u16.to_ne_bytes());
    message.extend_from_slice(&LOOPBACK_INDEX.to_ne_bytes());
    message.extend_from_slice(&UP.to_ne_bytes());
    message.extend_from_slice(&UP.to_ne_bytes());
    message
}

/// The code in the kernel's answer: 0, or an error number below zero.
#[expect(
    clippy::host_endian_bytes,
    reason = "the kernel's own messages are in the order of the machine"
)]
fn refusal(answer: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes(*answer.get(4..)?.first_chunk()?);
    let code = i32::from_ne_bytes(*answer.get(16..)?.first_chunk()?);
    (kind == ERROR).then_some(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_has_the_kernels_layout() {
        let message = link_up();
        assert_eq!(message.len(), 32);
        if cfg!(target_endian = "little") {
            assert_eq!(
                message,
                [
                    32, 0, 0, 0, 16, 0, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0, // head
                    0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, // interface
                ]
            );
        }
    }

    #[expect(
        clippy::host_endian_bytes,
        reason = "the kernel's own messages are in the order of the machine"
    )]
    #[test]
    fn an_answer_is_read_and_another_is_not() {
        let mut answer = link_up();
        assert_eq!(refusal(&answer), None);
        answer[4..6].copy_from_slice(&ERROR.to_ne_bytes());
        answer[16..20].copy_from_slice(&(-1_i32).to_ne_bytes());
        assert_eq!(refusal(&answer), Some(-1));
        assert_eq!(refusal(&answer[..19]), None);
    }
}
