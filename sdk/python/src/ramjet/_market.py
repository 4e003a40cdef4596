"""The words of a node's local socket for requesters (`docs/WIRE.md` 7.1), and the connection that speaks them.

    frame    length u32 (of kind and body) | kind u8 | body            big-endian
    0 JSON   1 task   2 answer   3 verdict   4 progress   5 task with a deadline

`Link` cuts the stream into frames and holds what is to be written back while the node does not read. It decides
nothing; `Engagement` does.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Callable
from typing import Any, Protocol

from ._skill import TASK_LEN_MAX
from .errors import NodeError, ProtocolError

JSON, TASK, ANSWER, VERDICT, PROGRESS, TASK_DEADLINE = range(6)
#: A datagram for programs of another protocol, which a connection may be sent before it has said what it speaks.
DATAGRAM = 0x0C

DONE, FAILED, REFUSED = range(3)

FRAME = struct.Struct(">IB")
TASK_HEAD = struct.Struct(">IBQ")
TASK_DEADLINE_HEAD = struct.Struct(">IBQI")
#: length, kind, token, status, round trip ns, busy ns, staged ns.
ANSWER_HEAD = struct.Struct(">IBQBQQQ")
PROGRESS_HEAD = struct.Struct(">IBQ")
VERDICT_FRAME = struct.Struct(">IBQB")

#: Longest kind and body.
FRAME_LEN_MAX = 1 + 33 + TASK_LEN_MAX


def json_frame(message: Any) -> bytes:
    """One JSON frame."""
    body = json.dumps(message).encode()
    return FRAME.pack(1 + len(body), JSON) + body


def task_frame(token: int, payload: bytes, deadline_us: int | None) -> bytes:
    """One task; without a deadline of its own it has its engagement's."""
    if deadline_us is None:
        return TASK_HEAD.pack(9 + len(payload), TASK, token) + payload
    return TASK_DEADLINE_HEAD.pack(13 + len(payload), TASK_DEADLINE, token, deadline_us) + payload


def verdict_frame(token: int, accepted: bool) -> bytes:
    """The judgement of one result."""
    return VERDICT_FRAME.pack(10, VERDICT, token, 0 if accepted else 1)


class Receiver(Protocol):
    """Who is told what a link received."""

    def _on_json(self, message: dict[str, Any]) -> None:
        """A reply or an event."""

    def _on_answer(self, token: int, status: int, times: tuple[int, int, int], data: bytes) -> None:
        """An answer; `times` are round trip, busy and staged in nanoseconds."""

    def _on_progress(self, token: int, piece: bytes) -> None:
        """A piece of progress."""

    def _on_batch_end(self) -> None:
        """Everything that had arrived was told."""

    def _on_closed(self, error: Exception | None) -> None:
        """The connection is gone; told once, last."""

    def _on_writable(self) -> None:
        """The node reads again."""


class Link(asyncio.Protocol):
    """One connection."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._transport: asyncio.Transport | None = None
        self._pieces: list[bytes] = []
        self._held = 0
        self._needed = FRAME.size
        #: Whether the node reads what is written.
        self.writable = True

    def write(self, data: bytes) -> None:
        """Writes, or forgets what nobody will read."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """Ends the connection, and with it what was asked for on it."""
        if self._transport is not None:
            self._transport.abort()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's."""
        assert isinstance(transport, asyncio.Transport)
        transport.set_write_buffer_limits(1 << 20)
        self._transport = transport

    def pause_writing(self) -> None:
        """asyncio's."""
        self.writable = False

    def resume_writing(self) -> None:
        """asyncio's."""
        self.writable = True
        self._receiver._on_writable()

    def connection_lost(self, error: Exception | None) -> None:
        """asyncio's."""
        self._transport = None
        self._receiver._on_closed(error)

    def data_received(self, data: bytes) -> None:
        """asyncio's."""
        self._held += len(data)
        if self._pieces or self._held < self._needed:
            # A long frame is put together once, when all of it is here.
            self._pieces.append(data)
            if self._held < self._needed:
                return
            data = b"".join(self._pieces)
            self._pieces.clear()
        try:
            used = self._frames(data)
        except ProtocolError as error:
            self.close()
            self._receiver._on_closed(error)
            return
        self._held = len(data) - used
        if self._held:
            self._pieces.append(data[used:])
        self._receiver._on_batch_end()

    def _frames(self, data: bytes) -> int:
        """Tells every whole frame; returns how many bytes they had and sets what the next one needs."""
        at, end = 0, len(data)
        receiver = self._receiver
        while end - at >= FRAME.size:
            length, kind = FRAME.unpack_from(data, at)
            if not 1 <= length <= FRAME_LEN_MAX:
                raise ProtocolError(f"a frame of {length} bytes from the node, must be 1 to {FRAME_LEN_MAX}")
            after = at + 4 + length
            if after > end:
                self._needed = 4 + length
                return at
            if kind == ANSWER:
                if length < ANSWER_HEAD.size - 4:
                    raise ProtocolError(f"an answer of {length} bytes from the node")
                _, _, token, status, round_trip, busy, staged = ANSWER_HEAD.unpack_from(data, at)
                receiver._on_answer(token, status, (round_trip, busy, staged), data[at + ANSWER_HEAD.size : after])
            elif kind == PROGRESS:
                if length < PROGRESS_HEAD.size - 4:
                    raise ProtocolError(f"progress of {length} bytes from the node")
                receiver._on_progress(PROGRESS_HEAD.unpack_from(data, at)[2], data[at + PROGRESS_HEAD.size : after])
            elif kind == JSON:
                receiver._on_json(parse_json(data[at + FRAME.size : after]))
            elif kind != DATAGRAM:
                raise ProtocolError(f"a frame of kind {kind} from the node; is it of this version?")
            at = after
        self._needed = FRAME.size
        return at


def parse_json(body: bytes) -> dict[str, Any]:
    """A JSON object of the node.

    Raises:
        ProtocolError: it is none.
    """
    try:
        message = json.loads(body)
    except ValueError as error:
        raise ProtocolError(f"unreadable JSON from the node: {error}") from error
    if not isinstance(message, dict):
        raise ProtocolError(f"JSON from the node that is no object: {message!r}")
    return message


async def connect(path: str, make: Callable[[], Link]) -> Link:
    """Connects to a node.

    Raises:
        NodeError: nobody listens there.
    """
    loop = asyncio.get_running_loop()
    try:
        _, link = await loop.create_unix_connection(make, path)
    except OSError as error:
        raise NodeError(
            f"socket {path}: {error.strerror or error}; is the node running, and its socket there?"
        ) from error
    return link
