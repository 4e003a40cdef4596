//! A node under a service manager, which the test plays: the notification socket, the watchdog, the
//! store of descriptors, SIGHUP.

use std::fs::File;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::Signal;

use crate::harness::{Market, PATIENCE, Process, Worker, until};

/// What a manager has at its end.
struct Manager {
    socket: UnixDatagram,
    path: std::path::PathBuf,
    store: Vec<OwnedFd>,
}

impl Manager {
    fn new(market: &Market) -> Self {
        let path = market.path("notify");
        let socket = UnixDatagram::bind(&path).expect("bound");
        socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        Manager {
            socket,
            path,
            store: Vec::new(),
        }
    }

    /// The next message that holds this line, and all of it. Descriptors go to the store.
    #[track_caller]
    fn hears(&mut self, line: &str) -> String {
        loop {
            let mut bytes = [0; 1_024];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let received = recvmsg(
                &self.socket,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC,
            )
            .unwrap_or_else(|error| panic!("no {line}: {error}"));
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                    self.store.extend(descriptors);
                }
            }
            let text = String::from_utf8_lossy(&bytes[..received.bytes]).into_owned();
            if text.lines().any(|told| told == line) {
                return text;
            }
        }
    }
}

const FILE: &str = "skill = 'echo'\ntask-ready = true\n";

/// A node with settings from a file, as a service of this manager.
fn node_command(market: &Market, manager: &Manager) -> Command {
    let config = market.file("node.toml", FILE);
    let mut command = market.node_command("node", &["--config"]);
    command
        .arg(config)
        .env("NOTIFY_SOCKET", &manager.path)
        .env("WATCHDOG_USEC", "300000");
    command
}

#[test]
fn a_manager_is_told_of_start_life_reload_and_end() {
    let market = Market::start();
    let mut manager = Manager::new(&market);
    let node = Worker::ready(Process::start("node", &mut node_command(&market, &manager)));
    let ready = manager.hears("READY=1");
    let status = format!("STATUS=node {} serves on {}", node.node, node.listen);
    assert!(ready.lines().any(|line| line == status), "{ready}");
    manager.hears("WATCHDOG=1");
    manager.hears("WATCHDOG=1");

    // One that can change, one that cannot.
    market.file(
        "node.toml",
        "skill = 'echo'\ntask-ready = false\ncredits = 9\n",
    );
    node.process.signal(Signal::HUP);
    let reloading = manager.hears("RELOADING=1");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    manager.hears("READY=1");
    assert_eq!(node.status()["task_ready"], false);
    until("both are told", || {
        let log = node.process.errors();
        let taken = log.contains("settings were read again taken=\"task-ready\"");
        let later = log.contains("holds from the next start only setting=\"credits\"");
        (taken && later).then_some(())
    });

    // A wrong file changes nothing and ends nothing.
    market.file("node.toml", "task-raedy = true\n");
    node.process.signal(Signal::HUP);
    manager.hears("READY=1");
    until("the fault is told", || {
        node.process
            .errors()
            .contains("there is no key \"task-raedy\"; did you mean \"task-ready\"?")
            .then_some(())
    });
    assert_eq!(node.status()["task_ready"], false);
    node.process.signal(Signal::TERM);
    manager.hears("STOPPING=1");
    node.process.end().expect(0);
}

#[test]
fn sockets_that_were_left_are_used_on_by_the_next_process() {
    let market = Market::start();
    let mut manager = Manager::new(&market);
    let node = Worker::ready(Process::start("node", &mut node_command(&market, &manager)));
    let stored = manager.hears("FDSTORE=1");
    assert!(stored.lines().any(|line| line == "FDNAME=udp0"), "{stored}");
    let address = node.listen;
    node.process.kill();

    // As a manager hands it over: descriptor 3, with the process's own number in the environment.
    let socket = manager.store.pop().expect("one worker, one socket");
    let node = node_command(&market, &manager);
    let mut command = Command::new("/bin/sh");
    command
        .env_clear()
        .envs(
            node.get_envs()
                .filter_map(|(key, value)| Some((key, value?))),
        )
        .env("LISTEN_FDS", "1")
        .env("LISTEN_FDNAMES", "udp0")
        .args([
            "-c",
            "export LISTEN_PID=$$; exec \"$@\" 3<&0 </dev/null",
            "sh",
        ])
        .arg(node.get_program())
        .args(node.get_args())
        .stdin(Stdio::from(File::from(socket)));
    let node = Worker::ready(Process::start("node", &mut command));
    assert_eq!(
        node.listen, address,
        "port 0 in the settings, the same port"
    );
    assert!(
        node.process
            .errors()
            .contains("sockets of an earlier process are used on"),
        "{}",
        node.process.errors()
    );
    node.process.terminate().expect(0);
}

#[test]
fn a_run_goes_on_with_the_worker_that_takes_the_place_of_one_that_drains() {
    // Where it was, as a host's node is: requesters know it there.
    take_over(|drained| drained.to_string());
}

#[test]
fn a_run_goes_on_with_the_worker_that_takes_its_place_on_another_port() {
    // The requester still has a tunnel to the old port, where nobody answers.
    take_over(|_| "127.0.0.1:0".to_owned());
}

/// A worker drains in the middle of a run, and its node starts again at `listen`.
fn take_over(listen: impl Fn(SocketAddr) -> String) {
    const LINES: usize = 100_000;
    const HEAD: usize = 500;
    let market = Market::start();
    let arguments = ["--accept-from", "anyone", "--listen", "127.0.0.1:0"];
    let worker = market.worker("worker", "echo", &arguments);
    let lines: String = (0..LINES).map(|line| format!("{line}\n")).collect();
    let file = market.file("lines.txt", lines);
    let mut command = market.submit_command("requester", "echo");
    // Held in its middle until this test reads on.
    let run = Process::start("submit", command.arg("--lines").arg(file));
    for line in 0..HEAD {
        assert_eq!(run.line(), Some(line.to_string()));
    }
    let rest = std::thread::spawn(move || run.end());
    worker.process.signal(Signal::TERM);
    let (drained, number) = (worker.listen, worker.node);
    worker.process.end().expect(0);
    let arguments = ["--accept-from", "anyone", "--listen", &listen(drained)];
    let next = market.worker("worker", "echo", &arguments);
    assert_eq!(next.node, number, "the same identity");
    let ended = rest.join().expect("it ends").expect(0);
    let printed: Vec<usize> = ended
        .lines
        .iter()
        .map(|line| line.parse().expect("a number"))
        .collect();
    assert!(
        printed.into_iter().eq(HEAD..LINES),
        "every line, once, in order"
    );
    assert!(ended.errors.contains("resubmitted"), "{}", ended.errors);
}
