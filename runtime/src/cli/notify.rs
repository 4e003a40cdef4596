//! What systemd is told, and what it keeps for the next process: the protocol of `sd_notify(3)`.
//!
//! Invariants: without `$NOTIFY_SOCKET` nothing happens; a message that cannot be sent is logged and
//! changes nothing, since the service works without.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use listenfd::ListenFd;
use sd_notify::NotifyState;

use crate::events;

/// Under this name the sockets of the tunnel lie in the store of the service manager.
const TUNNEL: &str = "udp";

fn tell(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd was not told {states:?}");
    }
}

/// The service serves; `status` is what `systemctl status` shows.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// It waits for something before it is ready: `status` says for what. The start may take so much
/// longer from now on.
pub fn waiting(status: &str, longer: Duration) {
    let micros = u32::try_from(longer.as_micros()).unwrap_or(u32::MAX);
    tell(&[
        NotifyState::ExtendTimeoutUsec(micros),
        NotifyState::Status(status),
    ]);
}

/// It reads its settings again; [`ready`] ends this.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "systemd was not told of the reload: no clock"),
    }
}

/// It ends in good order.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Leaves the sockets of a tunnel with the service manager, each under its place in the group: a later
/// process of this service finds them with [`left_sockets`], and what arrives meanwhile waits in them.
pub fn leave_sockets(sockets: &[UdpSocket]) {
    for (index, socket) in sockets.iter().enumerate() {
        let name = format!("{TUNNEL}{index}");
        let states = [
            NotifyState::FdStore,
            NotifyState::FdName(&name),
            // An error that waits in a socket is the next process's to read, and no reason to close it.
            NotifyState::Custom("FDPOLL=0"),
        ];
        if let Err(error) = sd_notify::notify_with_fds(&states, &[socket.as_fd()]) {
            tracing::warn!(%error, name, "a socket could not be left with systemd");
        }
    }
}

/// The sockets that an earlier process left, if they are what this one would bind: `workers` of them,
/// at `listen`, whose port may be 0 for any. Others are given up, here and in the store.
pub fn left_sockets(listen: SocketAddr, workers: usize) -> Option<Arc<Vec<UdpSocket>>> {
    let mut left = ListenFd::from_env();
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut sockets: Vec<(String, UdpSocket)> = names
        .split(':')
        .enumerate()
        .take(left.len())
        .filter_map(|(index, name)| {
            let socket = left.take_udp_socket(index).ok().flatten()?;
            Some((name.to_owned(), socket))
        })
        .collect();
    if sockets.is_empty() {
        return None;
    }
    // The manager hands them over in an order of its own.
    sockets.sort_by_key(|(name, _)| place(name));
    for (_, socket) in &sockets {
        // They came open for every child that is started; ours are not for them.
        let _ = rustix::io::fcntl_setfd(socket, rustix::io::FdFlags::CLOEXEC);
    }
    if !fits(&sockets, listen, workers) {
        let count = sockets.len();
        for (name, _) in &sockets {
            // Left open, they would take datagrams away from the ones that are bound now.
            tell(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
        }
        tracing::info!(count, %listen, workers, "sockets of an earlier process do not fit");
        return None;
    }
    let sockets: Vec<UdpSocket> = sockets.into_iter().map(|(_, socket)| socket).collect();
    let address = sockets[0].local_addr().ok();
    tracing::info!(
        message_id = events::SOCKETS_KEPT,
        listen = ?address,
        "sockets of an earlier process are used on"
    );
    Some(Arc::new(sockets))
}

/// The place in the group that a name of the store says.
fn place(name: &str) -> Option<usize> {
    name.strip_prefix(TUNNEL)?.parse().ok()
}

/// Whether these are the whole group that would be bound, in order.
fn fits(sockets: &[(String, UdpSocket)], listen: SocketAddr, workers: usize) -> bool {
    let address = |socket: &UdpSocket| socket.local_addr().ok();
    let Some(bound) = sockets.first().and_then(|(_, first)| address(first)) else {
        return false;
    };
    sockets.len() == workers
        && bound.ip() == listen.ip()
        && (listen.port() == 0 || bound.port() == listen.port())
        && sockets.iter().enumerate().all(|(index, (name, socket))| {
            place(name) == Some(index) && address(socket) == Some(bound)
        })
}

/// The watchdog of the service manager: fed only after a sign of life.
pub struct Watchdog {
    /// How often it is fed: a third of what systemd waits.
    every: Option<Duration>,
    due_at: Instant,
    /// The last answer was that somebody is silent.
    silent: bool,
}

impl Watchdog {
    /// As `$WATCHDOG_USEC` says; without it nobody is ever asked.
    pub fn from_env() -> Self {
        Watchdog::new(sd_notify::watchdog_enabled())
    }

    fn new(limit: Option<Duration>) -> Self {
        Watchdog {
            every: limit.map(|limit| limit / 3),
            due_at: Instant::now(),
            silent: false,
        }
    }

    /// How long from now until the next look, at most `otherwise`.
    pub fn pause(&self, otherwise: Duration) -> Duration {
        match self.every {
            None => otherwise,
            Some(_) => otherwise.min(self.due_at.saturating_duration_since(Instant::now())),
        }
    }

    /// If it is time: asks for a sign of life, which must come within the time lent, and feeds the
    /// dog if it came. What is silent is logged once until it moves again.
    pub fn look(&mut self, sign: impl FnOnce(Duration) -> Result<(), String>) {
        let Some(every) = self.every else { return };
        if Instant::now() < self.due_at {
            return;
        }
        match sign(every) {
            Ok(()) => {
                if std::mem::take(&mut self.silent) {
                    tracing::info!("all threads move again");
                }
                tell(&[NotifyState::Watchdog]);
            }
            Err(why) => {
                if !std::mem::replace(&mut self.silent, true) {
                    tracing::error!(
                        message_id = events::SILENCE,
                        %why,
                        "no sign of life: the watchdog is not fed"
                    );
                }
            }
        }
        self.due_at = Instant::now() + every;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_group_at_its_address_is_used_on() {
        let bind = |address: &str| UdpSocket::bind(address).expect("bound");
        let first = bind("127.0.0.1:0");
        let address = first.local_addr().expect("bound");
        let second = first.try_clone().expect("a clone");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let elsewhere = SocketAddr::from(([127, 0, 0, 2], 0));
        let one = vec![("udp0".to_owned(), first)];
        assert!(fits(&one, any, 1) && fits(&one, address, 1));
        assert!(!fits(&one, elsewhere, 1) && !fits(&one, any, 2));
        assert!(!fits(
            &one,
            SocketAddr::new(any.ip(), address.port() ^ 1),
            1
        ));
        let mut two = one;
        two.push(("udp1".to_owned(), second));
        assert!(fits(&two, any, 2));
        two[1].0 = "stored".to_owned();
        assert!(!fits(&two, any, 2), "a name that is none of ours");
        two[1] = ("udp1".to_owned(), bind("127.0.0.1:0"));
        assert!(!fits(&two, any, 2), "two addresses");
    }

    #[test]
    fn a_sign_is_asked_for_when_it_is_due_and_never_without_a_watchdog() {
        let asked = std::cell::Cell::new(0);
        let sign = |answer: Result<(), String>| {
            let asked = &asked;
            move |_| {
                asked.set(asked.get() + 1);
                answer
            }
        };
        let mut none = Watchdog::new(None);
        none.look(sign(Ok(())));
        assert_eq!(
            (asked.get(), none.pause(Duration::from_secs(9))),
            (0, Duration::from_secs(9))
        );
        let mut dog = Watchdog::new(Some(Duration::from_secs(3_600)));
        dog.look(sign(Err("worker 1".to_owned())));
        assert!(dog.silent);
        dog.look(sign(Ok(())));
        assert_eq!(asked.get(), 1, "the second look came too early to ask");
        dog.due_at = Instant::now();
        dog.look(sign(Ok(())));
        assert!(!dog.silent && asked.get() == 2);
        assert!(dog.pause(Duration::from_secs(7_200)) <= Duration::from_secs(1_200));
    }
}
