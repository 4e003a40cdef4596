"""`Driver`: the calls of the article, one at a time, over the node's socket in the framing of Pilot's programs.

    frame    length u32 (of code and payload) | code u8 | payload      big-endian; a reply has code + 1, an error 0A

Contract: one thread uses a driver at a time, and each call waits for its reply. Pushes that come in between are kept:
pieces of progress for `progress`, everything else is dropped. `docs/WIRE.md` 7.2 and 7.3 have the tables.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Union

from ._local import Payload, payload_bytes
from ._market import parse_json
from ._paths import local_socket
from ._units import Duration, nanoseconds, whole
from .errors import EngagementClosed, NodeError, NodeRefused, ProtocolError, TaskFailed

SET_TASK_READY, SET_CAPABILITIES, ACCEPT_TASK, COMPLETE_TASK = 0xA1, 0xA3, 0xA5, 0xA7
REPORT_PROGRESS, SUBMIT_TASK, WAIT_TASK_RESULT, PROGRESS_PUSH, CANCEL_TASK = 0xA9, 0xAB, 0xAD, 0xAF, 0xB1
ERROR = 0x0A
INFO = 0x0D
#: Longest code and payload.
FRAME_LEN_MAX = 1 << 20
#: How long a reply may take beyond what a call itself waits for, in seconds.
PATIENCE_S = 30.0
#: Longest wait of one call.
WAIT_MAX_NS = 600_000_000_000
PROGRESS_KEPT_MAX = 4_096

_FRAME = struct.Struct(">IB")


@dataclass(frozen=True)
class AcceptedTask:
    """A task that this program has accepted and has to complete."""

    #: Its number in this program.
    task: int
    #: Which of the program's skills it is for.
    skill: str
    #: What to work on.
    payload: bytes
    #: Longest result.
    result_len_max: int


@dataclass(frozen=True)
class TaskResult:
    """What became of a task that this program has submitted."""

    #: ``"done"``, ``"failed"``, ``"refused"``, ``"expired"``, ``"closed"``, ``"no_registry"`` or ``"too_long"``.
    status: str
    #: The result, if it is done.
    result: bytes
    #: Everything else that the node tells: engagement, worker, round trip, reason.
    details: Mapping[str, Any]

    def value(self) -> bytes:
        """The result.

        Raises:
            TaskFailed: it ran and failed.
            EngagementClosed: it did not run; the text is the status with its reason.
        """
        if self.status == "done":
            return self.result
        reason = str(self.details.get("reason", self.result.decode("utf-8", "replace")))
        raise TaskFailed(reason) if self.status == "failed" else EngagementClosed(f"{self.status}: {reason}")


class Driver:
    """A program at a node: worker, requester or both. A context manager; what it offers ends with it."""

    def __init__(self, socket_path: str | os.PathLike[str] | None = None) -> None:
        """Connects.

        Raises:
            NodeError: no node is there.
        """
        self._path = os.fspath(local_socket(socket_path, requester=False))
        self._link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._held = bytearray()
        self._progress: deque[tuple[int, bytes]] = deque(maxlen=PROGRESS_KEPT_MAX)
        try:
            self._link.connect(self._path)
        except OSError as error:
            self._link.close()
            raise NodeError(
                f"socket {self._path}: {error.strerror or error}; is the node running, and its socket there?"
            ) from error

    def __enter__(self) -> Driver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the node: its skills are no longer advertised, its tasks fail."""
        self._link.close()

    # A worker.

    def set_task_ready(self, ready: bool = True) -> None:
        """SetTaskReady: whether the node asks the market for tasks."""
        self._ask(SET_TASK_READY, bytes([bool(ready)]))

    def set_capabilities(
        self, skills: list[str], *, accept_from: str = "gate", capabilities: Mapping[str, str] | None = None
    ) -> list[str]:
        """SetCapabilities: what this program can do; replaces what it said before.

        Args:
            skills: names that tasks may ask this program for.
            accept_from: whom to serve beyond the polo gate: ``gate``, ``trusted``, ``min-polo=N`` or ``anyone``.
            capabilities: anything else to advertise, such as ``{"model": "bge-small-en"}``.

        Returns the skills as the node has them.
        """
        told = {**(capabilities or {}), "skills": ",".join(skills), "accept-from": accept_from}
        reply = parse_json(self._ask(SET_CAPABILITIES, json.dumps(told).encode()))
        return [str(name) for name in reply.get("skills", [])]

    def accept_task(self, timeout: Duration = "600s") -> AcceptedTask:
        """AcceptTask: waits for the next task.

        Raises:
            TimeoutError: none came in time.
        """
        told, payload = self._ask_task(ACCEPT_TASK, b"", timeout)
        try:
            return AcceptedTask(int(told["task"]), str(told["skill"]), payload, int(told["result_len_max"]))
        except (KeyError, ValueError, TypeError) as error:
            raise ProtocolError(f"an unfitting reply to accept task: {told!r}") from error

    def complete_task(self, task: Union[AcceptedTask, int], result: Payload) -> None:
        """Answers a task with its result."""
        self._complete(task, 0, payload_bytes(result))

    def fail_task(self, task: Union[AcceptedTask, int], reason: str) -> None:
        """Answers a task with why it has no result."""
        self._complete(task, 1, reason.encode())

    def report_progress(self, task: Union[AcceptedTask, int], piece: bytes) -> None:
        """Sends a piece of progress of at most 1,310 bytes. There is no reply: what cannot be sent is dropped."""
        self._send(REPORT_PROGRESS, _number(task) + piece)

    # A requester.

    def submit_task(
        self,
        skill: str,
        payload: Payload,
        *,
        filters: Mapping[str, str] | None = None,
        min_polo: int | None = None,
        accept_within: Duration = "10s",
        duration: Duration = "60s",
    ) -> int:
        """SubmitTask: offers one task to the market. Returns its number, for `wait_task_result`."""
        told: dict[str, Any] = {
            "skill": skill,
            "filters": [{"key": key, "value": value} for key, value in (filters or {}).items()],
            "accept_deadline_ms": max(1, nanoseconds("accept_within", accept_within, 1, 300_000_000_000) // 1_000_000),
            "duration_s": -(-nanoseconds("duration", duration, 1) // 1_000_000_000),
        }
        if min_polo is not None:
            told["min_polo"] = whole("min_polo", min_polo, -(1 << 63), (1 << 63) - 1)
        head = json.dumps(told).encode()
        reply = parse_json(self._ask(SUBMIT_TASK, len(head).to_bytes(4, "big") + head + payload_bytes(payload)))
        try:
            return int(reply["task"])
        except (KeyError, ValueError, TypeError) as error:
            raise ProtocolError(f"an unfitting reply to submit task: {reply!r}") from error

    def wait_task_result(self, task: int, timeout: Duration = "600s") -> TaskResult:
        """WaitTaskResult: waits for what becomes of a submitted task. It is told once.

        Raises:
            TimeoutError: it goes on; ask again.
        """
        told, result = self._ask_task(WAIT_TASK_RESULT, task.to_bytes(8, "big"), timeout)
        return TaskResult(str(told.get("status")), result, told)

    def cancel_task(self, task: int) -> None:
        """Gives a submitted task up; its result tells so."""
        self._ask(CANCEL_TASK, task.to_bytes(8, "big"))

    def progress(self, task: int) -> list[bytes]:
        """The pieces of progress of a submitted task that came since the last call, as far as replies were read."""
        mine = [piece for number, piece in self._progress if number == task]
        rest = [entry for entry in self._progress if entry[0] != task]
        self._progress.clear()
        self._progress.extend(rest)
        return mine

    def info(self) -> dict[str, Any]:
        """What the node says of itself, as a Pilot daemon would."""
        return parse_json(self._ask(INFO, b""))

    # Inside.

    def _complete(self, task: Union[AcceptedTask, int], end: int, data: bytes) -> None:
        self._ask(COMPLETE_TASK, _number(task) + bytes([end]) + data)

    def _send(self, code: int, payload: bytes) -> None:
        if 1 + len(payload) > FRAME_LEN_MAX:
            raise ValueError(
                f"a command of {len(payload)} bytes, at most {FRAME_LEN_MAX - 1}; larger tasks go by ramjet.engage"
            )
        self._link.settimeout(PATIENCE_S)
        try:
            self._link.sendall(_FRAME.pack(1 + len(payload), code) + payload)
        except OSError as error:
            raise self._gone(error) from error

    def _ask(self, code: int, payload: bytes, wait_s: float = 0.0) -> bytes:
        self._send(code, payload)
        self._link.settimeout(wait_s + PATIENCE_S)
        while True:
            got, body = self._frame()
            if got == code + 1:
                return body
            if got == ERROR:
                raise _error(body[2:].decode("utf-8", "replace"))
            if got == PROGRESS_PUSH and len(body) >= 8:
                self._progress.append((int.from_bytes(body[:8], "big"), body[8:]))

    def _ask_task(self, code: int, head: bytes, timeout: Duration) -> tuple[dict[str, Any], bytes]:
        ns = nanoseconds("timeout", timeout, 0, WAIT_MAX_NS)
        body = self._ask(code, head + (ns // 1_000_000).to_bytes(4, "big"), ns / 1e9)
        length = int.from_bytes(body[:4], "big")
        if len(body) < 4 + length:
            raise ProtocolError(f"a reply of {len(body)} bytes whose JSON has {length}")
        return parse_json(body[4 : 4 + length]), body[4 + length :]

    def _frame(self) -> tuple[int, bytes]:
        length, code = _FRAME.unpack(self._take(_FRAME.size))
        if not 1 <= length <= FRAME_LEN_MAX:
            raise ProtocolError(f"a frame of {length} bytes from the node, must be 1 to {FRAME_LEN_MAX}")
        return code, self._take(length - 1)

    def _take(self, length: int) -> bytes:
        while len(self._held) < length:
            try:
                piece = self._link.recv(1 << 18)
            except OSError as error:
                raise self._gone(error) from error
            if not piece:
                raise self._gone(None)
            self._held += piece
        taken = bytes(self._held[:length])
        del self._held[:length]
        return taken

    def _gone(self, error: OSError | None) -> NodeError:
        why = "the node closed the connection" if error is None else str(error) or type(error).__name__
        return NodeError(f"socket {self._path}: {why}")


def _number(task: Union[AcceptedTask, int]) -> bytes:
    return (task.task if isinstance(task, AcceptedTask) else task).to_bytes(8, "big")


def _error(text: str) -> Exception:
    """What the node said no to; running out of time is Python's own `TimeoutError`."""
    if "no task within" in text or text.endswith("it goes on"):
        return TimeoutError(text)
    return NodeRefused(text)
