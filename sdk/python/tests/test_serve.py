"""`serve` against a node played by hand: greeting, batches, ends, and what a node may not send."""

from __future__ import annotations

import contextlib
import os
import pathlib
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import ramjet
from fake_node import EPOCH, FakeNode, listen
from ramjet import _layout as layout

PROGRAMS = pathlib.Path(__file__).resolve().parent / "programs"


@ramjet.skill("reverse", max_batch=8, max_payload=1_000, out=1_000)
def reverse(batch: ramjet.Batch) -> list[bytes]:
    return [bytes(payload)[::-1] for payload in batch]


class Served:
    """A skill in a thread, at the far end of a pair of sockets."""

    def __init__(self, skill: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        monkeypatch.setenv("RAMJET_AGENT_FD", str(far.detach()))
        self.node = FakeNode(near)
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self.run, args=(skill,))
        self.thread.start()

    def run(self, skill: Any) -> None:
        try:
            ramjet.serve(skill)
        except BaseException as error:
            self.error = error

    def end(self) -> BaseException | None:
        self.thread.join(20)
        assert not self.thread.is_alive(), "serve goes on"
        self.node.link.close()
        return self.error


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], Served]]:
    started: list[Served] = []

    def start(skill: Any) -> Served:
        started.append(Served(skill, monkeypatch))
        return started[-1]

    yield start
    for served in started:
        with contextlib.suppress(OSError):
            served.node.link.shutdown(socket.SHUT_RDWR)
        served.end()


def test_batches_are_answered_in_order_until_the_node_leaves(serving: Callable[[Any], Served]) -> None:
    served = serving(reverse)
    node = served.node
    hello = node.hello()
    assert (hello["skill"], hello["pid"], hello["max_batch"]) == ("reverse", os.getpid(), 8)
    node.welcome(unknown_member="is ignored")
    node.ready()
    first, second = node.give([b"abc", b"", b"12"]), node.give([b"xy"])
    assert node.done(first) == [(1, b"cba"), (1, b""), (1, b"21")]
    assert node.done(second) == [(1, b"yx")]
    node.send(layout.DRAIN)
    last = node.give([b"still staged"])
    assert node.done(last) == [(1, b"degats llits")]
    node.link.close()
    assert served.end() is None


def test_a_failure_and_progress_are_told_by_packets(serving: Callable[[Any], Served]) -> None:
    @ramjet.skill("moody", max_batch=8)
    def moody(batch: ramjet.Batch) -> Any:
        batch.heartbeat()
        batch.progress(0, b"so far")
        raise ValueError("no luck: " + "ä" * 2_000)

    node = serving(moody).node
    node.greet()
    told = node.give([b"", b""])
    assert node.take() == (layout.ALIVE, EPOCH, struct.pack("<Q", told.batch))
    assert node.take() == (layout.PROGRESS, EPOCH, struct.pack("<QII", told.batch, 0, 0) + b"so far")
    kind, _, body = node.take()
    assert kind == layout.FAILED and body[:8] == struct.pack("<Q", told.batch)
    assert body[8:].decode().startswith("ValueError: no luck: ää") and 1_023 <= len(body) - 8 <= 1_024


def test_answers_stay_within_what_the_agent_may_write(serving: Callable[[Any], Served]) -> None:
    @ramjet.skill("full", max_batch=8, out=ramjet.u8(300))
    def full(batch: ramjet.Batch) -> None:
        batch.out[:] = 0xEE
        batch.fail(0, "r" * 5_000)

    node = serving(full).node
    node.greet()
    told = node.lay([b"a" * 50] * 8)
    region = node.region(told.region)
    end = told.result_offset + told.result_len
    table = layout.HEADER_LEN + 8 * layout.TASK_LEN
    region[end:] = b"\xcc" * (len(region) - end)
    before = bytes(region)
    node.send(layout.BATCH, layout.BATCH_BODY.pack(*told))
    answers = node.done(told)
    assert answers[0] == (layout.ANSWER_FAILED, b"r" * 300) and answers[7] == (layout.ANSWER_DONE, b"\xee" * 300)
    after = bytes(region)
    assert after[:table] == before[:table] and after[end:] == before[end:]
    assert (
        after[table + 8 * layout.ANSWER_LEN : told.result_offset]
        == before[table + 8 * layout.ANSWER_LEN : told.result_offset]
    )


def test_a_task_that_nobody_wants_any_more_is_seen_at_once(serving: Callable[[Any], Served]) -> None:
    seen: list[list[bool]] = []
    flip, flipped = threading.Event(), threading.Event()

    @ramjet.skill("long", max_batch=8)
    def long(batch: ramjet.Batch) -> Any:
        seen.append(batch.alive)
        flip.set()
        assert flipped.wait(20)
        seen.append(batch.alive)
        return batch

    node = serving(long).node
    node.greet()
    told = node.give([b"a", b"b"])
    assert flip.wait(20)
    at = layout.HEADER_LEN + layout.TASK_LEN + 28
    node.region(told.region)[at : at + 4] = struct.pack("<I", layout.UNWANTED)
    flipped.set()
    node.done(told)
    assert seen == [[True, True], [True, False]]


# What a node may not say.


def test_a_refusal_is_told_with_the_nodes_reason(serving: Callable[[Any], Served]) -> None:
    served = serving(reverse)
    served.node.hello()
    served.node.send(layout.REFUSED, b"max_payload differs", 0)
    error = served.end()
    assert isinstance(error, ramjet.NodeRefused) and "max_payload differs" in str(error)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"regions": 0}, "regions: 0 must be 1"),
        ({"regions": 1_000}, "regions: 1000"),
        ({"regions": "two"}, "regions: 'two' must be a whole number"),
        ({"region_len": 10}, "region_len: 10"),
        ({"region_len": 65_530}, "no multiple of 64"),
        ({"arena_len": 5}, "arena_len: 5"),
        ({"arena_len": 1 << 40}, "arena_len"),
        ({"real_len": 4_096}, "an arena of 4096 bytes, WELCOME says 131072"),
        ({"result_len_max": 7}, "result_len_max 7, HELLO said 1000"),
        ({"max_batch": 0}, "max_batch: 0"),
        ({"node": None, "max_batch": None}, "max_batch: None"),
    ],
)
def test_a_welcome_that_cannot_be_ends_the_connection(
    serving: Callable[[Any], Served], changed: dict[str, Any], told: str
) -> None:
    served = serving(reverse)
    served.node.hello()
    served.node.welcome(**changed)
    error = served.end()
    assert isinstance(error, ramjet.ProtocolError) and told in str(error)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"\xff", b'"text"', b"null"])
def test_a_welcome_without_json_or_arena_ends_the_connection(serving: Callable[[Any], Served], body: bytes) -> None:
    served = serving(reverse)
    served.node.hello()
    served.node.send(layout.WELCOME, body)
    assert isinstance(served.end(), ramjet.ProtocolError)


BAD_NOTES: list[tuple[dict[str, int], str]] = [
    ({"region": 2}, "region 2, there are 2"),
    ({"n": 0}, "0 tasks, must be 1 to 8"),
    ({"n": 9}, "9 tasks"),
    ({"n": 0xFFFF_FFFF}, "4294967295 tasks"),
    ({"batch": 12345}, "holds another batch"),
    ({"work": 77}, "holds another batch"),
    ({"result_offset": 0}, "results of"),
    ({"result_offset": 0xFFFF_FFC0}, "results of"),
    ({"result_offset": 999}, "a multiple of 64"),
    ({"result_len": 5}, "results of 5 bytes"),
]


@pytest.mark.parametrize(("changed", "told"), BAD_NOTES)
def test_a_batch_that_cannot_be_ends_the_connection(
    serving: Callable[[Any], Served], changed: dict[str, int], told: str
) -> None:
    served = serving(reverse)
    served.node.greet()
    note = served.node.lay([b"abc"])._replace(**changed)
    served.node.send(layout.BATCH, layout.BATCH_BODY.pack(*note))
    error = served.end()
    assert isinstance(error, ramjet.ProtocolError) and told in str(error)


@pytest.mark.parametrize(
    ("field", "value"), [(16, 0), (16, 0xFFFF_FFFF), (20, 0xFFFF_FFFF), (20, 70_000), (16, 60_000)]
)
def test_a_payload_outside_its_place_ends_the_connection(
    serving: Callable[[Any], Served], field: int, value: int
) -> None:
    served = serving(reverse)
    served.node.greet()
    note = served.node.lay([b"abc", b"def"])
    at = layout.HEADER_LEN + layout.TASK_LEN + field
    served.node.region(note.region)[at : at + 4] = struct.pack("<I", value)
    served.node.send(layout.BATCH, layout.BATCH_BODY.pack(*note))
    error = served.end()
    assert isinstance(error, ramjet.ProtocolError) and "a payload lies outside" in str(error)


@pytest.mark.parametrize(
    ("packet", "told"),
    [
        (b"\x05", "a packet of 1 bytes"),
        (struct.pack("<HHI", layout.BATCH, 1, EPOCH), "a BATCH of 0 bytes"),
        (struct.pack("<HHI", layout.DRAIN, 1, EPOCH + 1), "epoch 10"),
        (struct.pack("<HHI", layout.DRAIN, 3, EPOCH), "ABI 3"),
        (struct.pack("<HHI", layout.HELLO, 1, EPOCH), "kind 1 during batches"),
        (struct.pack("<HHI", 999, 1, EPOCH), "kind 999 during batches"),
    ],
)
def test_a_packet_that_cannot_be_ends_the_connection(
    serving: Callable[[Any], Served], packet: bytes, told: str
) -> None:
    served = serving(reverse)
    served.node.greet()
    served.node.link.send(packet)
    error = served.end()
    assert isinstance(error, ramjet.ProtocolError) and told in str(error)


def test_no_change_of_a_region_does_more_than_end_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches with random words in header and task table: each is answered or is a `ProtocolError`."""
    draw = random.Random(5)
    outcomes = {"answered": 0, "refused": 0}
    with ramjet.local(reverse) as skill:
        agent, view = skill._agent, skill._view
        for number in range(2_000):
            note, _ = layout.write_batch(view, 0, 1, number, [bytes(draw.randrange(40)) for _ in range(3)], 1_000)
            at = draw.randrange(0, layout.HEADER_LEN + 3 * layout.TASK_LEN, 4)
            view[at : at + 4] = struct.pack(
                "<I", draw.choice([0, 1, 8, 0x100, 0xFFFF, 0xFFFF_FFFF, draw.getrandbits(32)])
            )
            try:
                agent.handle(note)
            except ramjet.ProtocolError:
                outcomes["refused"] += 1
            else:
                assert all(answer.status == layout.ANSWER_DONE for answer in layout.read_answers(view, note))
                outcomes["answered"] += 1
        skill._sent.clear()
    assert min(outcomes.values()) > 200, outcomes


# Life of the process.


class Program:
    """A skill as its own process, attached by path."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.path = str(folder / "agents.sock")
        self.listener = listen(self.path)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, str(PROGRAMS / "skills.py"), *arguments],
            env={**os.environ, "RAMJET_AGENT_SOCKET": self.path}, stderr=subprocess.PIPE,
        )  # fmt: skip

    def accept(self) -> FakeNode:
        return FakeNode(self.listener.accept()[0])


@pytest.fixture
def program(tmp_path: pathlib.Path) -> Iterator[Program]:
    program = Program(tmp_path)
    yield program
    program.listener.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(program: Program, number: signal.Signals) -> None:
    process = program.start("slow")
    node = program.accept()
    node.greet()
    told = node.give([b"work"])
    assert node.take()[0] == layout.PROGRESS, "it runs"
    process.send_signal(number)
    # What runs is answered, and what was staged before the node heard of it too.
    staged = node.give([b"staged"])
    kinds: list[int] = []
    while len(kinds) < 4:
        kinds.append(node.take()[0])
    assert sorted(kinds) == [layout.DONE, layout.DONE, layout.PROGRESS, layout.BYE]
    assert kinds.index(layout.BYE) < 3
    assert layout.read_answers(node.region(told.region), told) == [(1, b"work")]
    assert layout.read_answers(node.region(staged.region), staged) == [(1, b"staged")]
    node.link.close()
    assert process.wait(20) == 0


def test_a_signal_before_the_first_batch_ends_it(program: Program) -> None:
    process = program.start("stuck")
    node = program.accept()
    node.hello()
    node.welcome()
    assert process.stderr is not None
    assert process.stderr.readline() == b"loading\n"
    process.terminate()
    assert process.wait(20) == 0
    assert node.take()[0] == 0


def test_it_comes_back_when_the_node_does(program: Program) -> None:
    process = program.start("moody")
    try:
        for way in range(3):
            node = program.accept()
            node.greet()
            assert node.done(node.give([b"%d" % way])) == [(1, b"%d" % way)]
            if way:
                node.send(layout.DRAIN)
            node.link.close()
    finally:
        process.terminate()
        process.wait(20)


def test_nobody_there_is_told_with_the_path_and_what_to_do(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ramjet.NodeError, match="no node listens for agents at .*nothing.sock: .*RAMJET_AGENT_SOCKET"):
        ramjet.serve(reverse, socket_path=tmp_path / "nothing.sock")


def test_a_descriptor_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("seven", "987654"):
        monkeypatch.setenv("RAMJET_AGENT_FD", text)
        with pytest.raises(ramjet.NodeError, match=f"RAMJET_AGENT_FD='{text}' is no open socket"):
            ramjet.serve(reverse)
