//! What moves the datagrams: shown by a kernel that forbids all other ways.
//!
//! A seccomp filter judges system calls, and an operation inside a ring is none. Under a filter that
//! refuses every system call by which a datagram can be sent to, or received from, somebody named,
//! a worker that still serves does so by io_uring. The same filter silences the other backend.
#![expect(
    unsafe_code,
    reason = "a filter can only be installed between fork and exec"
)]

use std::os::unix::process::CommandExt;
use std::process::Command;

use libc::{
    BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO,
    sock_filter, sock_fprog,
};

use crate::harness::{Market, Process, Worker, until};

/// A step of the filter: operation, constant, and how far to jump if it holds or not.
fn step(code: u32, k: u32, jump_true: u8, jump_false: u8) -> sock_filter {
    let code = u16::try_from(code).expect("operations are 16 bits");
    sock_filter {
        code,
        jt: jump_true,
        jf: jump_false,
        k,
    }
}

/// `recvmsg`, `recvmmsg`, `sendmsg` and `sendmmsg` are refused, and so are `sendto` and `recvfrom`
/// with an address: without one they serve connections, which control needs.
fn without_datagrams() -> Vec<sock_filter> {
    const NUMBER: u32 = 0;
    // Halves of the fifth argument, the address, in `struct seccomp_data`.
    const ADDRESS: [u32; 2] = [16 + 4 * 8, 16 + 4 * 8 + 4];
    let call = |number: libc::c_long| u32::try_from(number).expect("numbers are small");
    let load = |offset| step(BPF_LD | BPF_W | BPF_ABS, offset, 0, 0);
    let is = |k, yes, no| step(BPF_JMP | BPF_JEQ | BPF_K, k, yes, no);
    let refused = SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs();
    vec![
        load(NUMBER),
        is(call(libc::SYS_recvmsg), 10, 0),
        is(call(libc::SYS_recvmmsg), 9, 0),
        is(call(libc::SYS_sendmsg), 8, 0),
        is(call(libc::SYS_sendmmsg), 7, 0),
        is(call(libc::SYS_sendto), 1, 0),
        is(call(libc::SYS_recvfrom), 0, 4),
        load(ADDRESS[0]),
        is(0, 0, 3),
        load(ADDRESS[1]),
        is(0, 0, 1),
        step(BPF_RET | BPF_K, SECCOMP_RET_ALLOW, 0, 0),
        step(BPF_RET | BPF_K, refused, 0, 0),
    ]
}

/// Has `command` start under the filter.
fn forbid_datagrams(command: &mut Command) -> &mut Command {
    let filter = without_datagrams();
    let install = move || {
        let program = sock_fprog {
            len: u16::try_from(filter.len()).expect("a short filter"),
            filter: filter.as_ptr().cast_mut(),
        };
        // SAFETY: both calls take plain numbers and, in the second, a pointer to `program`, which
        // with the filter it points at lives until the call returns; neither changes memory.
        let installed = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(
                    libc::PR_SET_SECCOMP,
                    libc::SECCOMP_MODE_FILTER,
                    &raw const program,
                ) == 0
        };
        if installed {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    };
    // SAFETY: between fork and exec only two system calls are made; nothing is allocated.
    unsafe { command.pre_exec(install) }
}

/// Whether the kernel filters the system calls of a process.
fn is_filtered(worker: &Worker) -> bool {
    let path = format!("/proc/{}/status", worker.process.id());
    let status = std::fs::read_to_string(path).expect("it runs");
    status
        .lines()
        .any(|line| line.split_whitespace().eq(["Seccomp:", "2"]))
}

fn backend(worker: &Worker) -> String {
    worker.status()["workers"][1]
        .as_str()
        .expect("text")
        .to_owned()
}

const LINES: u64 = 2_000;

/// Has the worker do some lines, and says how many datagrams it received and sent for them.
fn serve_lines(market: &Market, worker: &Worker) -> (u64, u64) {
    let lines: Vec<String> = (0..LINES).map(|index| format!("{index} of many")).collect();
    let file = market.file("lines.txt", lines.join("\n"));
    let ended = market.submit(
        "requester",
        "echo",
        &["--lines", file.to_str().expect("text")],
    );
    assert!(ended.expect(0).lines == lines, "every line came back");
    let status = worker.status();
    let counter = |name| crate::harness::counter(&status, name);
    assert_eq!(counter("tasks_run"), LINES);
    (counter("datagrams_received"), counter("datagrams_sent"))
}

const WORKER: [&str; 4] = ["--skill", "echo", "--task-ready", "--public"];

#[test]
fn a_worker_serves_where_no_system_call_may_move_a_datagram() {
    let market = Market::start();
    let mut command = market.node_command("worker", &WORKER);
    let worker = Worker::ready(Process::start("worker", forbid_datagrams(&mut command)));
    market.listed(worker.node);
    assert!(is_filtered(&worker), "the filter is in force");
    assert_eq!(backend(&worker), "uring");
    let (received, sent) = serve_lines(&market, &worker);
    assert!(received > 0 && sent > 0, "{received} received, {sent} sent");
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", worker.process.id()));
    let rings = descriptors
        .expect("it runs")
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.as_os_str() == "anon_inode:[io_uring]")
        .count();
    assert!(rings >= 1, "it holds a ring");
}

#[test]
fn two_threads_of_a_worker_share_its_port_and_nothing_else() {
    let market = Market::start();
    let worker = market.worker(
        "worker",
        "echo",
        &["--workers", "2", "--accept-from", "anyone"],
    );
    let lines: Vec<String> = (0..LINES).map(|index| format!("{index} of many")).collect();
    let file = market.file("lines.txt", lines.join("\n"));
    // Their numbers follow each other, so that both threads get some.
    let who = ["first", "second", "third"];
    let runs = who.map(|who| {
        let mut command = market.submit_command(who, "echo");
        Process::start(who, command.arg("--lines").arg(&file))
    });
    for run in runs {
        assert!(run.end().expect(0).lines == lines, "every line came back");
    }
    let status = worker.status();
    let counter = |name| crate::harness::counter(&status, name);
    assert_eq!(status["workers"][0], 2);
    assert_eq!(counter("tasks_run"), 3 * LINES);
    assert_eq!(
        counter("datagrams_forwarded"),
        0,
        "the kernel steers each to its thread"
    );
}

#[test]
fn the_other_backend_serves_too_but_not_under_that_filter() {
    let market = Market::start();
    let worker = market.worker("worker", "echo", &["--io", "mmsg"]);
    assert_eq!(backend(&worker), "mmsg");
    let (received, sent) = serve_lines(&market, &worker);
    assert!(received > 0 && sent > 0, "{received} received, {sent} sent");

    // It asks the beacon who it is by a datagram, and cannot.
    let beacon = market.beacon_addr.to_string();
    let mut command = market.node_command("silenced", &["--io", "mmsg", "--beacon", &beacon]);
    let silenced = Worker::ready(Process::start("silenced", forbid_datagrams(&mut command)));
    until("a send is refused", || {
        (silenced.counter("dropped_send_failed") > 0).then_some(())
    });
    assert_eq!(silenced.counter("datagrams_received"), 0);
}
