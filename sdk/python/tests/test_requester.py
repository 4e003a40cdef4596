"""The requester and the driver against a node played by hand: frames byte by byte, refusals, and what cannot be."""

from __future__ import annotations

import asyncio
import contextlib
import json
import pathlib
import socket
import struct
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import ramjet
from ramjet import _market as market

LIMIT_S = 20
OPENED = [
    {"reply": "submitted", "offer": 1, "window": 1_024},
    {"reply": "event", "event": {"event": "offered", "offer": 1, "notified": 1, "diagnosis": None}},
    {"reply": "event", "event": {"event": "granted", "engagement": 7, "worker": 3, "worker_address": "0:0000.0000.0003",
                                 "polo": [5, 4], "gate": "met", "credits": 64}},
    {"reply": "event", "event": {"event": "opened"}},
]  # fmt: skip
TOTALS = {"tasks": 1, "done": 1, "accepted": 1}


def ended(**outcome: Any) -> bytes:
    return market.json_frame(
        {"reply": "event", "event": {"event": "ended", "outcome": outcome, "totals": TOTALS, "settlement": None}}
    )


def answer(token: int, status: int, data: bytes) -> bytes:
    return market.ANSWER_HEAD.pack(33 + 1 + len(data), market.ANSWER, token, status, 30, 20, 10) + data


class Node:
    """The node's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def frame(self) -> tuple[int, bytes]:
        length, kind = market.FRAME.unpack(await self.reader.readexactly(market.FRAME.size))
        return kind, await self.reader.readexactly(length - 1)

    async def json(self) -> Any:
        kind, body = await self.frame()
        assert kind == market.JSON
        return json.loads(body)

    async def task(self) -> tuple[int, bytes]:
        kind, body = await self.frame()
        assert kind == market.TASK
        return int.from_bytes(body[:8], "big"), body[8:]

    def send(self, *frames: bytes) -> None:
        self.writer.write(b"".join(frames))

    async def open(self) -> Any:
        submit = await self.json()
        self.send(*map(market.json_frame, OPENED))
        return submit


def against(
    folder: pathlib.Path,
    play: Callable[[Node], Awaitable[None]],
    use: Callable[[ramjet.Engagement], Awaitable[Any]],
    **options: Any,
) -> Any:
    """Runs `use` in an engagement with a node that does what `play` says; what is wrong with the play is raised."""

    async def both() -> Any:
        played: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await play(Node(reader, writer))
                played.set_result(None)
            except Exception as error:
                played.set_exception(error)
            finally:
                writer.close()

        path = folder / "n.sock"
        server = await asyncio.start_unix_server(serve, path)
        try:
            async with ramjet.engage("echo", socket_path=path, **options) as engagement:
                return await use(engagement)
        finally:
            await asyncio.wait_for(played, LIMIT_S)
            server.close()

    return asyncio.run(asyncio.wait_for(both(), LIMIT_S))


# Frames.


def test_frames_have_the_published_bytes() -> None:
    assert market.task_frame(7, b"ab", None).hex() == "0000000b" + "01" + "0000000000000007" + "6162"
    assert market.task_frame(7, b"ab", 20_000).hex() == "0000000f" + "05" + "0000000000000007" + "00004e20" + "6162"
    assert market.verdict_frame(7, True).hex() == "0000000a" + "03" + "0000000000000007" + "00"
    assert market.verdict_frame(7, False).hex()[-2:] == "01"
    assert market.json_frame({"op": "end"}) == b"\0\0\0\x0e\0" + b'{"op": "end"}'


class Told:
    """Writes down what a link tells."""

    def __init__(self) -> None:
        self.words: list[Any] = []

    def _on_json(self, message: dict[str, Any]) -> None:
        self.words.append(message)

    def _on_answer(self, token: int, status: int, times: tuple[int, int, int], data: bytes) -> None:
        self.words.append((token, status, times, data))

    def _on_progress(self, token: int, piece: bytes) -> None:
        self.words.append((token, piece))

    def _on_batch_end(self) -> None: ...

    def _on_closed(self, error: Exception | None) -> None:
        self.words.append(error)

    def _on_writable(self) -> None: ...


STREAM = (
    struct.pack(">IB", 5, market.DATAGRAM) + b"dgrm"
    + market.json_frame({"reply": "submitted"})
    + answer(1, 0, b"") + answer(2, 1, b"why") + answer(3, 0, b"r" * 300)
    + market.PROGRESS_HEAD.pack(9 + 4, market.PROGRESS, 3) + b"half"
)  # fmt: skip
WORDS = [
    {"reply": "submitted"},
    (1, 0, (30, 20, 10), b""),
    (2, 1, (30, 20, 10), b"why"),
    (3, 0, (30, 20, 10), b"r" * 300),
    (3, b"half"),
]


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 64, 1_000])
def test_a_stream_cut_anywhere_tells_the_same(piece: int) -> None:
    told = Told()
    link = market.Link(told)
    for at in range(0, len(STREAM), piece):
        link.data_received(STREAM[at : at + piece])
    assert told.words == WORDS


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (struct.pack(">IB", 0, 0), "a frame of 0 bytes"),
        (struct.pack(">IB", market.FRAME_LEN_MAX + 1, 2), "must be 1 to 16777250"),
        (struct.pack(">IB", 1, 9), "a frame of kind 9"),
        (struct.pack(">IB", 1, market.TASK), "a frame of kind 1"),
        (struct.pack(">IB", 20, market.ANSWER) + bytes(19), "an answer of 20 bytes"),
        (struct.pack(">IB", 5, market.PROGRESS) + bytes(4), "progress of 5 bytes"),
        (struct.pack(">IB", 3, market.JSON) + b"no", "unreadable JSON"),
        (struct.pack(">IB", 3, market.JSON) + b"[]", "no object"),
    ],
)
def test_a_frame_that_cannot_be_ends_the_connection(frame: bytes, text: str) -> None:
    told = Told()
    market.Link(told).data_received(frame)
    assert isinstance(told.words[-1], ramjet.ProtocolError) and text in str(told.words[-1])


# Engagements.


def test_a_submit_says_what_was_asked_for(tmp_path: pathlib.Path) -> None:
    seen: list[Any] = []

    async def play(node: Node) -> None:
        seen.append(await node.open())
        token, payload = await node.task()
        assert payload == b"hi"
        kind, body = await node.frame()
        assert (kind, body[8:]) == (market.TASK_DEADLINE, struct.pack(">I", 1_500) + b"soon")
        node.send(answer(token, 0, b"HI"), answer(token + 1, 2, b"late"))
        assert await node.frame() == (market.VERDICT, struct.pack(">QB", token, 0))
        assert await node.json() == {"op": "end"}
        node.send(ended(outcome="settled"))

    async def use(engagement: ramjet.Engagement) -> Any:
        first, second = engagement.submit("hi"), engagement.submit("soon", deadline="1500us")
        with pytest.raises(ramjet.Late):
            await second
        return await first, first.timing, engagement.worker, engagement.polo

    result = against(
        tmp_path,
        play,
        use,
        tasks=9,
        concurrency=4,
        min_polo=-3,
        filters={"model": "x"},
        deadline="20ms",
        duration="1500ms",
        accept_within="200ms",
    )
    assert result == (b"HI", ramjet.Timing(30, 20, 10), 3, (5, 4))
    assert seen == [
        {"op": "submit", "skill": "echo", "filters": [{"key": "model", "value": "x"}], "tasks": 9, "concurrency": 4,
         "duration_s": 2, "accept_deadline_ms": 200, "deadline_us": 20_000, "min_polo": -3}
    ]  # fmt: skip


def test_no_more_tasks_are_out_than_concurrency_or_the_nodes_window(tmp_path: pathlib.Path) -> None:
    async def play(node: Node) -> None:
        await node.json()
        node.send(market.json_frame({"reply": "submitted", "offer": 1, "window": 2}), market.json_frame(OPENED[3]))
        out = [await node.task(), await node.task()]
        for _ in range(8):
            token, payload = out.pop(0)
            node.send(answer(token, 0, payload))
            # The verdict comes first, then one task in its place.
            assert await node.frame() == (market.VERDICT, struct.pack(">QB", token, 0))
            out.append(await node.task())
        for token, payload in out:
            node.send(answer(token, 0, payload))
            await node.frame()
        assert await node.json() == {"op": "end"}
        node.send(ended(outcome="spooled"))

    items = [b"%d" % i for i in range(10)]
    assert against(tmp_path, play, lambda engagement: engagement.map(items), concurrency=5) == items


REFUSAL = {
    "code": "gate",
    "reason": "above you",
    "diagnosis": {"requester_polo": 2, "capable": 4, "above_gate": 4, "polo_needed": 9},
}


@pytest.mark.parametrize(
    ("outcome", "error", "text"),
    [
        ({"outcome": "refused", "refusal": REFUSAL}, ramjet.GateRefused, "gate: above you"),
        (
            {"outcome": "refused", "refusal": {"code": "limited", "reason": "later"}},
            ramjet.OfferRefused,
            "limited: later",
        ),
        (
            {"outcome": "expired", "polo": [3, 2], "notified": 2, "diagnosis": None},
            ramjet.OfferExpired,
            "none of 2 workers",
        ),
        (
            {"outcome": "expired", "polo": [3, 2], "notified": 0, "diagnosis": {"capable": 0}},
            ramjet.OfferExpired,
            "nobody was told",
        ),
        ({"outcome": "closed", "reason": "lost"}, ramjet.EngagementClosed, "closed: lost"),
        ({"outcome": "no_registry", "why": "unplugged"}, ramjet.EngagementClosed, "no_registry: unplugged"),
        ({"outcome": "of tomorrow"}, ramjet.EngagementClosed, "of tomorrow"),
        ({}, ramjet.ProtocolError, "unfitting"),
        ({"outcome": "refused"}, ramjet.ProtocolError, "unfitting"),
    ],
)
def test_an_offer_that_comes_to_nothing_is_a_typed_error(
    tmp_path: pathlib.Path, outcome: dict[str, Any], error: type[Exception], text: str
) -> None:
    async def play(node: Node) -> None:
        await node.json()
        node.send(market.json_frame(OPENED[0]), ended(**outcome))

    async def use(engagement: ramjet.Engagement) -> None:
        raise AssertionError("it was not opened")

    with pytest.raises(error, match=text) as told:
        against(tmp_path, play, use)
    if isinstance(told.value, ramjet.GateRefused):
        assert (told.value.requester_polo, told.value.polo_needed) == (2, 9)


def test_what_the_node_refuses_by_word_is_told(tmp_path: pathlib.Path) -> None:
    async def play(node: Node) -> None:
        await node.json()
        node.send(market.json_frame({"reply": "error", "error": "64 local connections are open, the limit"}))

    with pytest.raises(ramjet.NodeRefused, match="64 local connections"):
        against(tmp_path, play, lambda engagement: engagement.map([]))


@pytest.mark.parametrize(
    ("frame", "error"),
    [
        (answer(99, 0, b""), ramjet.ProtocolError),
        (answer(1, 0, b"") * 2, ramjet.ProtocolError),
        (answer(1, 9, b""), ramjet.ProtocolError),
        (market.json_frame({"reply": "workers"}), ramjet.ProtocolError),
        (market.json_frame({"reply": "event"}), ramjet.ProtocolError),
        (ended(outcome="closed", reason="draining"), ramjet.EngagementClosed),
        (b"", ramjet.NodeError),
    ],
)
def test_every_task_has_an_end_whatever_the_node_says(
    tmp_path: pathlib.Path, frame: bytes, error: type[Exception]
) -> None:
    async def play(node: Node) -> None:
        await node.open()
        for _ in range(3):
            await node.task()
        node.send(frame)

    async def use(engagement: ramjet.Engagement) -> Any:
        tasks = [engagement.submit("x") for _ in range(4)]
        mapping = asyncio.ensure_future(engagement.map(["y"] * 5))
        results = await asyncio.gather(*tasks, mapping, return_exceptions=True)
        assert all(isinstance(result, (error, bytes)) for result in results), results
        assert isinstance(results[-1], error)
        with pytest.raises(error):
            engagement.submit("too late")
        return "all ended"

    with pytest.raises(error):
        assert against(tmp_path, play, use, concurrency=3) == "all ended"


def test_a_judge_that_fails_ends_the_engagement_with_its_error(tmp_path: pathlib.Path) -> None:
    async def play(node: Node) -> None:
        await node.open()
        token, _ = await node.task()
        node.send(answer(token, 0, b"result"))

    async def use(engagement: ramjet.Engagement) -> Any:
        await engagement.map(["x", "y"])

    def judge(payload: bytes, result: bytes) -> bool:
        raise LookupError("no verdict")

    with pytest.raises(LookupError, match="no verdict"):
        against(tmp_path, play, use, judge=judge, concurrency=1)


def test_a_wait_that_is_given_up_leaves_the_others_alone(tmp_path: pathlib.Path) -> None:
    async def play(node: Node) -> None:
        await node.open()
        (first, _), (second, _) = await node.task(), await node.task()
        node.send(answer(second, 0, b"2"))
        await node.frame()
        node.send(answer(first, 0, b"1"))
        await node.frame()
        assert await node.json() == {"op": "end"}
        node.send(ended(outcome="settled"))

    async def use(engagement: ramjet.Engagement) -> Any:
        async def wait(task: ramjet.Task) -> bytes:
            return await task

        given_up = asyncio.ensure_future(wait(engagement.submit("first")))
        second = engagement.submit("second")
        await asyncio.sleep(0)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        return await second

    assert against(tmp_path, play, use) == b"2"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tasks": 0}, "tasks: 0 must be 1"),
        ({"concurrency": 4_097}, "concurrency: 4097 must be 1 to 4096"),
        ({"duration": "25h"}, "duration: '25h' must be"),
        ({"accept_within": "301s"}, "accept_within: '301s'"),
        ({"deadline": "0ms"}, "deadline: '0ms'"),
        ({"deadline": "2h"}, "deadline: '2h'"),
        ({"min_polo": 1.5}, "min_polo: 1.5 must be a whole number"),
    ],
)
def test_an_engagement_that_cannot_be_is_refused_by_name(options: dict[str, Any], text: str) -> None:
    with pytest.raises((ValueError, TypeError), match=text):
        ramjet.engage("echo", socket_path="/nowhere", **options)


def test_the_socket_is_looked_for_where_nodes_have_it(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ramjet._paths import local_socket

    for name in ("RAMJET_SOCKET", "RAMJET_STATE", "STATE_DIRECTORY", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(
        ramjet.NodeError, match=f"no node serves a socket in {tmp_path}/.local/state/ramjet; start `ramjet up`"
    ):
        local_socket(None, requester=True)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "x"))
    state = tmp_path / "x" / "ramjet"
    state.mkdir(parents=True)
    (state / "ramjet.sock").touch()
    assert local_socket(None, requester=True) == state / "ramjet.sock"
    (state / "requester.sock").touch()
    assert local_socket(None, requester=True) == state / "requester.sock"
    assert local_socket(None, requester=False) == state / "ramjet.sock"
    monkeypatch.setenv("STATE_DIRECTORY", f"{tmp_path}/one:{tmp_path}/two")
    with pytest.raises(ramjet.NodeError, match="/one;"):
        local_socket(None, requester=True)
    monkeypatch.setenv("RAMJET_SOCKET", "/run/r.sock")
    assert local_socket(None, requester=True) == pathlib.Path("/run/r.sock")
    assert local_socket("/named", requester=True) == pathlib.Path("/named")


# The driver.


def driver_against(folder: pathlib.Path, *replies: bytes) -> ramjet.Driver:
    """A driver whose node answers the first command with these bytes and leaves."""
    listener = socket.socket(socket.AF_UNIX)
    listener.settimeout(LIMIT_S)
    listener.bind(str(folder / "d.sock"))
    listener.listen(1)

    def play() -> None:
        link, _ = listener.accept()
        # The driver may have left by then.
        with link, listener, contextlib.suppress(OSError):
            link.settimeout(LIMIT_S)
            link.recv(1 << 16)
            link.sendall(b"".join(replies))

    threading.Thread(target=play, daemon=True).start()
    return ramjet.Driver(folder / "d.sock")


def framed(code: int, payload: bytes) -> bytes:
    return struct.pack(">IB", 1 + len(payload), code) + payload


def test_pushes_between_command_and_reply_are_kept_or_skipped(tmp_path: pathlib.Path) -> None:
    told = json.dumps({"status": "done", "task": 9}).encode()
    replies = [
        framed(0x0C, b"a datagram"),
        framed(0xAF, struct.pack(">Q", 9) + b"half"),
        framed(0xAF, struct.pack(">Q", 8) + b"other"),
        framed(0xAE, struct.pack(">I", len(told)) + told + b"the result"),
    ]
    with driver_against(tmp_path, *replies) as driver:
        assert driver.wait_task_result(9, "1s").value() == b"the result"
        assert (driver.progress(9), driver.progress(9), driver.progress(8)) == ([b"half"], [], [b"other"])
        with pytest.raises(ramjet.NodeError, match="closed|reset|[Bb]roken"):
            driver.set_task_ready()
            driver.set_task_ready()


@pytest.mark.parametrize(
    ("reply", "error", "text"),
    [
        (framed(0x0A, b"\0\1accept_task: this program has no skills"), ramjet.NodeRefused, "no skills"),
        (framed(0x0A, b"\0\1accept_task: no task within 5 ms"), TimeoutError, "no task within"),
        (framed(0xA6, b"\0\0\0\xff{}"), ramjet.ProtocolError, "a reply of 6 bytes whose JSON has 255"),
        (framed(0xA6, b"\0\0\0\2{}"), ramjet.ProtocolError, "unfitting reply to accept task"),
        (framed(0xA6, b"\0\0\0\2{x"), ramjet.ProtocolError, "unreadable JSON"),
        (struct.pack(">IB", 0, 0), ramjet.ProtocolError, "a frame of 0 bytes"),
        (struct.pack(">IB", 1 << 24, 0xA6), ramjet.ProtocolError, "must be 1 to 1048576"),
        (framed(0xA6, b"")[:3], ramjet.NodeError, "closed the connection"),
    ],
)
def test_a_reply_that_is_no_task_is_told(
    tmp_path: pathlib.Path, reply: bytes, error: type[Exception], text: str
) -> None:
    with driver_against(tmp_path, reply) as driver, pytest.raises(error, match=text):
        driver.accept_task("5ms")


def test_a_command_beyond_the_frame_is_refused_here(tmp_path: pathlib.Path) -> None:
    with driver_against(tmp_path) as driver, pytest.raises(ValueError, match="larger tasks go by ramjet.engage"):
        driver.submit_task("echo", bytes(1 << 20))
