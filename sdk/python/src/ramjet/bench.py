"""What this package costs by itself: ``python -m ramjet.bench``. No node, no network, no model.

Method: two processes on a core each. One plays the node: it lays batches of echo tasks into a real arena once, then
per batch writes the header, clears the answer table, sends BATCH, waits for DONE and compares the answer table and
the results with what they must be. The other is `ramjet.serve` with a skill that returns its payloads. The control is
the same two processes handing packets of the same lengths to and fro, with nothing done in between.

    rate       two batches in flight, wall clock; bounded by the slower process, which may be the one that plays the node
    cpu        CPU time of the serving process over that time, by the kernel's account: its inverse is what one core gives
    hand-over  one batch in flight, from before BATCH is sent until DONE is here
"""

from __future__ import annotations

import argparse
import fcntl
import json
import mmap
import os
import socket
import statistics
import subprocess
import sys
import time
from typing import Any

from . import _layout as layout
from ._serve import serve
from ._skill import skill

EPOCH = 7
REGIONS = 2
#: linux/fcntl.h: F_ADD_SEALS with F_SEAL_SEAL, F_SEAL_SHRINK and F_SEAL_GROW.
ADD_SEALS, SEALS = 1033, 1 | 2 | 4
PAIRS = 5


def echo_skill(batch_max: int, payload: int) -> Any:
    """The skill under test."""

    @skill("echo", max_batch=batch_max, out=max(payload, 1), max_payload=max(payload, 1))
    def echo(batch: Any) -> Any:
        return batch.payloads

    return echo


def ping(descriptor: int) -> None:
    """The control: answers every packet of BATCH's length with one of DONE's."""
    link = socket.socket(fileno=descriptor)
    space = bytearray(64)
    answer = bytes(layout.PACKET.size + layout.DONE_BODY.size)
    while link.recv_into(space):
        link.send(answer)


class Node:
    """The node's end: an arena with one batch laid out in each region."""

    def __init__(self, link: socket.socket, batch: int, payload: int) -> None:
        self.link, self.n, self.payload = link, batch, payload
        link.settimeout(60)
        kind, _, body = layout.parse_packet(link.recv(layout.PACKET_LEN_MAX))
        assert kind == layout.HELLO, f"HELLO expected, not {kind}"
        hello = json.loads(body)
        room = hello["result_len_max"]
        region_len = (layout.room_needed([payload] * batch, room) + 4_095) & ~4_095
        descriptor = os.memfd_create("ramjet-bench", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, REGIONS * region_len)
        fcntl.fcntl(descriptor, ADD_SEALS, SEALS)
        arena = memoryview(mmap.mmap(descriptor, REGIONS * region_len))
        self.regions = [arena[i * region_len : (i + 1) * region_len] for i in range(REGIONS)]
        welcome = {
            "node": 1, "name": hello["skill"], "arena_len": REGIONS * region_len, "region_len": region_len,
            "regions": REGIONS, "max_batch": hello["max_batch"], "result_len_max": hello["result_len_max"],
            "progress_len_max": 1_310,
        }  # fmt: skip
        socket.send_fds(link, [layout.packet(layout.WELCOME, EPOCH, json.dumps(welcome).encode())], [descriptor])
        os.close(descriptor)
        kind, _, _ = layout.parse_packet(link.recv(layout.PACKET_LEN_MAX))
        assert kind == layout.READY, f"READY expected, not {kind}"
        payloads = [os.urandom(payload) for _ in range(batch)]
        self.told = layout.write_batch(self.regions[0], 0, EPOCH, 0, payloads, room).packet
        layout.write_batch(self.regions[1], 1, EPOCH, 0, payloads, room)
        table = layout.HEADER_LEN + batch * layout.TASK_LEN
        self.table = slice(table, table + batch * layout.ANSWER_LEN)
        self.results = slice(self.told.result_offset, self.told.result_offset + batch * payload)
        self.expected = b"".join(payloads)
        self.cleared = bytes(batch * layout.ANSWER_LEN)
        self.answered = b"".join(
            layout.ANSWER_DONE.to_bytes(4, "little")
            + (self.told.result_offset + i * payload).to_bytes(4, "little")
            + payload.to_bytes(4, "little")
            + bytes(4)
            for i in range(batch)
        )
        self.number = 0

    def give(self) -> None:
        """Hands one batch over."""
        self.number += 1
        told, number = self.told, self.number
        region = self.regions[number % REGIONS]
        layout.REGION_HEADER.pack_into(
            region, 0, layout.MAGIC, layout.ABI, layout.HEADER_LEN, EPOCH, told.n, number, 0, told.work,
            told.result_offset, told.result_len,
        )  # fmt: skip
        region[self.table] = self.cleared
        body = layout.BATCH_BODY.pack(
            number, number % REGIONS, told.n, 0, told.work, told.result_offset, told.result_len
        )
        self.link.send(layout.packet(layout.BATCH, EPOCH, body))

    def take(self, check: bool) -> None:
        """Takes one batch back; every answer entry is compared, results where `check` says so."""
        kind, _, body = layout.parse_packet(self.link.recv(layout.PACKET_LEN_MAX))
        if kind != layout.DONE:
            raise SystemExit(f"bench: a packet of kind {kind}: {body!r}")
        number, _ = layout.DONE_BODY.unpack(body)
        region = self.regions[number % REGIONS]
        if region[self.table] != self.answered or check and region[self.results] != self.expected:
            raise SystemExit(f"bench: batch {number} was answered wrongly")


def cpu_ns(pid: int) -> int:
    """CPU time of a process with one thread, in nanoseconds."""
    with open(f"/proc/{pid}/schedstat", encoding="ascii") as file:
        return int(file.read().split()[0])


def start(mode: str, batch: int, payload: int) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Starts the other process at the far end of a socket."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    descriptor = far.fileno()
    command = [sys.executable, "-m", "ramjet.bench", mode, str(batch), str(payload)]
    process = subprocess.Popen(command, pass_fds=[descriptor], env={**os.environ, "RAMJET_AGENT_FD": str(descriptor)})
    far.close()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    return process, near


def percentiles(samples: list[int]) -> dict[str, float]:
    """p50 and p99 in microseconds."""
    samples.sort()
    return {"p50_us": samples[len(samples) // 2] / 1e3, "p99_us": samples[len(samples) * 99 // 100] / 1e3}


def measure(batch: int, payload: int, seconds: float) -> dict[str, Any]:
    """One row: rate, CPU and hand-over of one batch size."""
    process, link = start("--agent", batch, payload)
    try:
        node = Node(link, batch, payload)
        for _ in range(200):
            node.give()
            node.take(True)
        batches, began, cpu = 0, time.perf_counter_ns(), cpu_ns(process.pid)
        node.give()
        while time.perf_counter_ns() - began < seconds * 1e9:
            node.give()
            node.take(batches % 64 == 0)
            batches += 1
        node.take(True)
        batches += 1
        spent, cpu = time.perf_counter_ns() - began, cpu_ns(process.pid) - cpu
        samples: list[int] = []
        at = time.perf_counter_ns()
        until = at + seconds * 1e9
        while at < until:
            at = time.perf_counter_ns()
            node.give()
            node.take(False)
            samples.append(time.perf_counter_ns() - at)
    finally:
        link.close()
        process.wait(10)
    tasks = batches * batch
    return {
        "batch": batch,
        "tasks_per_s": tasks / (spent / 1e9),
        "batches_per_s": batches / (spent / 1e9),
        "cpu_us_per_batch": cpu / batches / 1e3,
        "cpu_us_per_task": cpu / tasks / 1e3,
        "tasks_per_cpu_s": tasks / (cpu / 1e9),
        "handover": percentiles(samples),
    }


def control(seconds: float) -> dict[str, float]:
    """Round trips of bare packets between the same two processes."""
    process, link = start("--ping", 1, 1)
    packet = bytes(layout.PACKET.size + layout.BATCH_BODY.size)
    try:
        samples: list[int] = []
        for _ in range(200):
            link.send(packet)
            link.recv(64)
        at = time.perf_counter_ns()
        until = at + seconds * 1e9
        while at < until:
            at = time.perf_counter_ns()
            link.send(packet)
            link.recv(64)
            samples.append(time.perf_counter_ns() - at)
    finally:
        link.close()
        process.wait(10)
    return percentiles(samples)


def middle(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure over rows of one kind."""
    first = rows[0]
    return {
        key: middle([row[key] for row in rows])
        if isinstance(first[key], dict)
        else statistics.median(row[key] for row in rows)
        for key in first
    }


def main() -> None:
    """The command line."""
    if len(sys.argv) == 4 and sys.argv[1] in ("--agent", "--ping"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[-1]})
        if sys.argv[1] == "--ping":
            return ping(int(os.environ["RAMJET_AGENT_FD"]))
        return serve(echo_skill(int(sys.argv[2]), int(sys.argv[3])))
    parser = argparse.ArgumentParser(prog="python -m ramjet.bench", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--batch", default="1,16,256", help="batch sizes [default: %(default)s]")
    parser.add_argument("--payload", type=int, default=64, help="bytes of a payload [default: %(default)s]")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement [default: %(default)s]")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.batch.split(",")]
    cores = sorted(os.sched_getaffinity(0))
    rows: dict[int, list[dict[str, Any]]] = {size: [] for size in sizes}
    controls = []
    for turn in range(PAIRS):
        os.sched_setaffinity(0, cores)
        controls.append(control(arguments.seconds / 2))
        for size in sizes if turn % 2 == 0 else reversed(sizes):
            # The child starts with the cores of this process, so that it can take the last.
            os.sched_setaffinity(0, cores)
            rows[size].append(measure(size, arguments.payload, arguments.seconds))
    report = {
        "method": (__doc__ or "").split("\n\n")[1].replace("\n", " "),
        "turns": PAIRS,
        "cores": len(cores),
        "payload": arguments.payload,
        "control": middle(controls),
        "rows": [middle(rows[size]) for size in sizes],
    }
    if arguments.json:
        print(json.dumps(report))
    else:
        tell(report)


def tell(report: dict[str, Any]) -> None:
    """The report for people."""
    print(report["method"], end="\n\n")
    print(f"medians of {report['turns']} turns, {report['cores']} cores, payloads of {report['payload']} bytes\n")
    print(" batch    tasks/s  batches/s  CPU µs/batch  CPU µs/task  tasks per CPU s   hand-over p50, p99 µs")
    for row in report["rows"]:
        handover = row["handover"]
        print(
            f"{row['batch']:6.0f} {row['tasks_per_s']:10,.0f} {row['batches_per_s']:10,.0f} {row['cpu_us_per_batch']:13.1f} "
            f"{row['cpu_us_per_task']:12.2f} {row['tasks_per_cpu_s']:16,.0f} {handover['p50_us']:12.1f} {handover['p99_us']:8.1f}"
        )
    print(
        f"control: bare packets to and fro p50 {report['control']['p50_us']:.1f}, p99 {report['control']['p99_us']:.1f} µs"
    )


if __name__ == "__main__":
    main()
