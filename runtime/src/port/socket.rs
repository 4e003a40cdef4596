//! Sockets of the agent port: AF_UNIX, SOCK_SEQPACKET, one packet a message.
//!
//! Nothing here waits but [`connect`]. A packet that is longer than it may be is told apart from one
//! that fits, and a connection that ended from one that has nothing to say.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// The listening socket and its file; dropping it removes the file.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    path: PathBuf,
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Somebody may have removed it already; there is nothing else to do about it.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn socket() -> rustix::io::Result<OwnedFd> {
    rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
}

impl Listener {
    /// Listens at `path`, mode 0600. A file that nobody listens on is replaced.
    ///
    /// # Errors
    /// The path and what stands in the way.
    pub fn bind(path: &Path) -> Result<Self, String> {
        let named = |error: io::Error| format!("agent socket {}: {error}", path.display());
        match std::fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(format!(
                    "agent socket {}: there is a file that is no socket; remove it or name another \
                     path with --agent-socket",
                    path.display()
                ));
            }
            Ok(_) if connect(path).is_ok() => {
                return Err(format!(
                    "agent socket {}: another node listens there; stop it or name another path \
                     with --agent-socket",
                    path.display()
                ));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(named(error)),
        }
        // Moved into its place once its mode is right: nobody can connect before, and a stale file is
        // replaced in one step.
        let mut partial = path.as_os_str().to_owned();
        partial.push(format!(".{}", std::process::id()));
        let partial = PathBuf::from(partial);
        let _ = std::fs::remove_file(&partial);
        let listening = || -> io::Result<OwnedFd> {
            let socket = socket()?;
            rustix::net::bind(&socket, &SocketAddrUnix::new(&partial)?)?;
            std::fs::set_permissions(&partial, std::fs::Permissions::from_mode(0o600))?;
            rustix::net::listen(&socket, BACKLOG)?;
            rustix::io::ioctl_fionbio(&socket, true)?;
            std::fs::rename(&partial, path)?;
            Ok(socket)
        };
        match listening() {
            Ok(socket) => Ok(Listener {
                socket,
                path: path.to_owned(),
            }),
            Err(error) => {
                let _ = std::fs::remove_file(&partial);
                Err(named(error))
            }
        }
    }

    /// The next connection that waits; `None` if none does.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn accept(&self) -> io::Result<Option<OwnedFd>> {
        match rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC) {
            Ok(socket) => Ok(Some(socket)),
            Err(Errno::AGAIN | Errno::CONNABORTED | Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// To be waited for.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Connects to a node.
///
/// # Errors
/// What the kernel says.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    let socket = socket()?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Two connected ends.
///
/// # Errors
/// What the kernel says.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let ends = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    Ok(ends)
}

/// Whether a peer with this uid may speak to a node with ours: the same, and root.
///
/// # Errors
/// Who may not, for people.
pub fn may_speak(peer: u32, ours: u32) -> Result<(), String> {
    if peer == ours || peer == 0 {
        Ok(())
    } else {
        Err(format!(
            "uid {peer} may not speak to this node of uid {ours}"
        ))
    }
}

/// Whether the other end may speak to us, by the uid that the kernel names.
///
/// # Errors
/// Why not, for people.
pub fn check_peer(socket: BorrowedFd<'_>) -> Result<(), String> {
    let peer = rustix::net::sockopt::socket_peercred(socket)
        .map_err(|error| format!("the kernel does not name the agent's uid: {error}"))?;
    may_speak(peer.uid.as_raw(), rustix::process::geteuid().as_raw())
}

/// Sends a packet, or says that there is no room.
///
/// # Errors
/// What the kernel says; `WouldBlock` if the other end does not read.
pub fn send(socket: BorrowedFd<'_>, packet: &[u8]) -> io::Result<()> {
    rustix::net::send(socket, packet, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Sends a packet and waits for room.
///
/// # Errors
/// What the kernel says.
pub fn send_waiting(socket: BorrowedFd<'_>, packet: &[u8]) -> io::Result<()> {
    rustix::io::retry_on_intr(|| rustix::net::send(socket, packet, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// Sends a packet and a file with it.
///
/// # Errors
/// What the kernel says.
pub fn send_with_file(
    socket: BorrowedFd<'_>,
    packet: &[u8],
    file: BorrowedFd<'_>,
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = [file];
    let fits = control.push(SendAncillaryMessage::ScmRights(&files));
    debug_assert!(fits, "room for one file");
    rustix::net::sendmsg(
        socket,
        &[IoSlice::new(packet)],
        &mut control,
        SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// What a look at a connection brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// A packet of so many bytes.
    Packet(usize),
    /// A packet that is longer than the space.
    TooLong,
    /// Nothing now.
    Nothing,
    /// The other end is gone.
    Ended,
}

fn received(outcome: rustix::io::Result<usize>, space: usize) -> io::Result<Received> {
    match outcome {
        Ok(0) => Ok(Received::Ended),
        Ok(len) if len > space => Ok(Received::TooLong),
        Ok(len) => Ok(Received::Packet(len)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(Received::Nothing),
        Err(Errno::CONNRESET | Errno::PIPE) => Ok(Received::Ended),
        Err(error) => Err(error.into()),
    }
}

/// Takes the next packet, without waiting. Files that come with it are closed by the kernel.
///
/// # Errors
/// What the kernel says.
pub fn receive(socket: BorrowedFd<'_>, space: &mut [u8]) -> io::Result<Received> {
    let len_max = space.len();
    let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
    let outcome = rustix::net::recv(socket, space, flags);
    received(outcome.map(|(_, len)| len), len_max)
}

/// Waits for the next packet.
///
/// # Errors
/// What the kernel says.
pub fn receive_waiting(socket: BorrowedFd<'_>, space: &mut [u8]) -> io::Result<Received> {
    let len_max = space.len();
    let outcome = rustix::net::recv(socket, space, RecvFlags::TRUNC);
    received(outcome.map(|(_, len)| len), len_max)
}

/// Waits for the next packet, and the file that may come with it.
///
/// # Errors
/// What the kernel says.
pub fn receive_with_file(
    socket: BorrowedFd<'_>,
    space: &mut [u8],
) -> io::Result<(Received, Option<OwnedFd>)> {
    let len_max = space.len();
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut room);
    let outcome = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(space)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::TRUNC,
    );
    let mut file = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(files) = message {
            file = files.last();
        }
    }
    Ok((
        received(outcome.map(|message| message.bytes), len_max)?,
        file,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_keep_their_bounds_and_an_end_is_told() {
        let (one, other) = pair().expect("two descriptors");
        let mut space = [0; 4];
        let look = |space: &mut [u8]| receive(other.as_fd(), space).expect("a socket");
        assert_eq!(look(&mut space), Received::Nothing);
        send(one.as_fd(), b"ab").expect("room");
        send(one.as_fd(), b"12345").expect("room");
        assert_eq!(look(&mut space), Received::Packet(2));
        assert_eq!(look(&mut space), Received::TooLong);
        drop(one);
        assert_eq!(look(&mut space), Received::Ended);
    }

    #[test]
    fn a_file_comes_with_its_packet() {
        let (one, other) = pair().expect("two descriptors");
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("sent");
        std::fs::write(&path, "content").expect("a file");
        let file = std::fs::File::open(&path).expect("a file");
        send_with_file(one.as_fd(), b"take it", file.as_fd()).expect("room");
        let mut space = [0; 16];
        let (received, file) = receive_with_file(other.as_fd(), &mut space).expect("a socket");
        assert_eq!(received, Received::Packet(7));
        let file = std::fs::File::from(file.expect("it came"));
        assert_eq!(io::read_to_string(file).expect("text"), "content");
    }

    #[test]
    fn only_the_node_s_user_and_root_may_speak() {
        assert_eq!(may_speak(1_000, 1_000), Ok(()));
        assert_eq!(may_speak(0, 1_000), Ok(()));
        let refusal = may_speak(1_001, 1_000).expect_err("another user");
        assert_eq!(refusal, "uid 1001 may not speak to this node of uid 1000");
        let (one, _other) = pair().expect("two descriptors");
        assert_eq!(check_peer(one.as_fd()), Ok(()), "ourselves");
    }

    #[test]
    fn a_socket_replaces_a_stale_file_and_nothing_else() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("agents.sock");
        let listener = Listener::bind(&path).expect("free");
        let mode = std::fs::metadata(&path).expect("a file").permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        let error = Listener::bind(&path).expect_err("in use");
        assert!(error.contains("another node listens"), "{error}");
        // The file stays when its process is killed.
        let stale = folder.path().join("stale.sock");
        std::fs::rename(&path, &stale).expect("moved");
        drop(listener);
        let replaced = Listener::bind(&stale).expect("stale");
        let _client = connect(replaced.path()).expect("it listens");
        assert!(replaced.accept().expect("a socket").is_some());
        assert!(replaced.accept().expect("a socket").is_none());
        let file = folder.path().join("file");
        std::fs::write(&file, "mine").expect("a file");
        let error = Listener::bind(&file).expect_err("no socket");
        assert!(error.contains("no socket"), "{error}");
    }
}
