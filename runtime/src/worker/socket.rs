//! The group of sockets that share a node's one address.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::ring;
use super::trains::Trains;

/// Asked of the kernel for each socket and direction; it gives what `rmem_max` and `wmem_max` allow.
const BUFFER_BYTES: usize = 4 << 20;

/// How often, and after which pause, an address in use is tried again: the kernel closes the sockets
/// of a ring some milliseconds after its process was killed.
const BIND_TRIES: u32 = 10;
const BIND_AGAIN: Duration = Duration::from_millis(50);

fn bind(listen: SocketAddr, shared: bool) -> io::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(listen),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    socket.set_reuse_port(shared)?;
    // A smaller buffer works, and `doctor` says what it costs.
    let _ = socket.set_recv_buffer_size(BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(BUFFER_BYTES);
    socket.bind(&listen.into())?;
    Ok(socket.into())
}

/// The first socket of a group: bound alone, because with SO_REUSEPORT a second node of the same user
/// would take part of the datagrams of the first, and neither would be told.
fn bind_first(listen: SocketAddr) -> io::Result<UdpSocket> {
    for _ in 1..BIND_TRIES {
        match bind(listen, false) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                std::thread::sleep(BIND_AGAIN);
            }
            bound => return bound,
        }
    }
    bind(listen, false)
}

/// Binds `workers` UDP sockets to one address that no other process has, in order, and attaches the
/// steering program, so that datagrams of node `n` arrive at socket `n mod workers`. Port 0 is
/// resolved once for the group. Datagrams are gathered into trains if `trains` says that this works.
///
/// # Errors
/// What the kernel says of the address, the options or the program.
pub fn bind_group(
    listen: SocketAddr,
    workers: usize,
    trains: Trains,
) -> io::Result<Vec<UdpSocket>> {
    let count = u32::try_from(workers)
        .ok()
        .filter(|count| (1..=256).contains(count))
        .ok_or_else(|| io::Error::other(format!("workers: {workers}, must be 1 to 256")))?;
    let first = bind_first(listen)?;
    let address = first.local_addr()?;
    if count > 1 {
        // From here on the kernel lets further sockets of this user join.
        SockRef::from(&first).set_reuse_port(true)?;
    }
    let mut sockets = vec![first];
    for _ in 1..workers {
        sockets.push(bind(address, true)?);
    }
    equip(&sockets, count, trains)?;
    Ok(sockets)
}

/// Takes over a group that an earlier process of this node bound, in the order of its binding, with
/// the options that this process wants.
///
/// # Errors
/// A group of another size or of several addresses, and what the kernel says of the options.
pub fn adopt_group(
    group: &[UdpSocket],
    workers: usize,
    trains: Trains,
) -> io::Result<Vec<UdpSocket>> {
    let Some(count) = u32::try_from(workers)
        .ok()
        .filter(|_| workers == group.len() && workers > 0)
    else {
        return Err(io::Error::other(format!(
            "{} sockets were left for {workers} workers; each needs one",
            group.len()
        )));
    };
    let sockets = group
        .iter()
        .map(UdpSocket::try_clone)
        .collect::<io::Result<Vec<_>>>()?;
    let address = sockets[0].local_addr()?;
    for socket in &sockets {
        if socket.local_addr()? != address {
            return Err(io::Error::other(format!(
                "the sockets that were left are bound to {address} and {}; a node has one address",
                socket.local_addr()?
            )));
        }
        // A ring waits by itself; whoever had the socket before may have made it otherwise.
        socket.set_nonblocking(false)?;
    }
    equip(&sockets, count, trains)?;
    Ok(sockets)
}

/// Sets the options of a bound group.
fn equip(sockets: &[UdpSocket], count: u32, trains: Trains) -> io::Result<()> {
    for socket in sockets {
        if trains.gathered {
            ring::gather_trains(socket)?;
        }
        ring::forbid_fragments(socket)?;
    }
    if count > 1 {
        ring::attach_steering(&sockets[0], count)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_frame_reaches_the_socket_of_its_sender_whatever_its_port() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let group = bind_group(any, 3, Trains::NONE).expect("three sockets");
        let target = group[0].local_addr().expect("bound");
        for node in 0..12_u32 {
            let sender = UdpSocket::bind(any).expect("a sender");
            let mut frame = b"PILS".to_vec();
            frame.extend_from_slice(&node.to_be_bytes());
            frame.extend_from_slice(&[0; 62]);
            sender.send_to(&frame, target).expect("sent");
            let owner = &group[usize::try_from(node % 3).expect("small")];
            owner
                .set_read_timeout(Some(Duration::from_secs(5)))
                .expect("a time-out");
            let mut received = [0; 128];
            let (len, source) = owner.recv_from(&mut received).expect("steered here");
            assert_eq!(&received[..len], &frame[..]);
            assert_eq!(source, sender.local_addr().expect("bound"));
        }
    }

    #[test]
    fn an_address_belongs_to_one_group() {
        for workers in [1, 3] {
            let any = SocketAddr::from(([127, 0, 0, 1], 0));
            let group = bind_group(any, workers, Trains::NONE).expect("bound");
            let address = group[0].local_addr().expect("bound");
            for others in [1, 2] {
                let error = bind_group(address, others, Trains::NONE).expect_err("taken");
                assert_eq!(
                    error.kind(),
                    io::ErrorKind::AddrInUse,
                    "{workers} then {others}"
                );
            }
        }
    }

    #[test]
    fn a_group_that_was_left_keeps_its_address_and_what_waits_in_it() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let first = bind_group(any, 2, Trains::NONE).expect("bound");
        let address = first[0].local_addr().expect("bound");
        let sender = UdpSocket::bind(any).expect("a sender");
        let mut frame = b"PILS".to_vec();
        frame.extend_from_slice(&1_u32.to_be_bytes());
        frame.extend_from_slice(&[7; 62]);
        sender.send_to(&frame, address).expect("sent");
        let second = adopt_group(&first, 2, Trains::NONE).expect("adopted");
        drop(first);
        let mut received = [0; 128];
        second[1]
            .set_read_timeout(Some(Duration::from_secs(5)))
            .expect("a time-out");
        let (len, _) = second[1].recv_from(&mut received).expect("kept");
        assert_eq!(&received[..len], &frame[..]);
        assert_eq!(second[0].local_addr().expect("bound"), address);
        let error = adopt_group(&second, 3, Trains::NONE).expect_err("one is missing");
        assert!(
            error
                .to_string()
                .contains("2 sockets were left for 3 workers")
        );
    }

    #[test]
    fn a_group_of_none_is_refused_by_name() {
        let error = bind_group(SocketAddr::from(([127, 0, 0, 1], 0)), 0, Trains::NONE)
            .expect_err("refused");
        assert!(error.to_string().contains("workers: 0"));
    }
}
