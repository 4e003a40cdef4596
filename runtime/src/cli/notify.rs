//! What systemd is told: one datagram to the socket that it names in `$NOTIFY_SOCKET`
//! (`sd_notify(3)`). Without that variable nothing happens.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The node serves.
pub const READY: &str = "READY=1";
/// It ends in good order.
pub const STOPPING: &str = "STOPPING=1";

/// Tells systemd `state`. A failure is logged and changes nothing: the service works without.
pub fn notify(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send(socket.as_bytes(), state) {
        tracing::warn!(socket = %socket.display(), %error, "systemd was not told {state}");
    }
}

fn send(socket: &[u8], state: &str) -> std::io::Result<()> {
    // A leading @ stands for the zero byte of an abstract name.
    let address = match socket.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(socket))?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_name_are_reached() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("notify");
        let by_path = UnixDatagram::bind(&path).expect("bound");
        send(path.as_os_str().as_bytes(), READY).expect("sent");
        let name = format!("ramjet-notify-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let by_name = UnixDatagram::bind_addr(&address).expect("bound");
        send(format!("@{name}").as_bytes(), STOPPING).expect("sent");
        for (socket, expected) in [(by_path, READY), (by_name, STOPPING)] {
            let mut message = [0; 64];
            let len = socket.recv(&mut message).expect("received");
            assert_eq!(&message[..len], expected.as_bytes());
        }
        assert!(send(b"/no/such/socket", READY).is_err());
    }
}
