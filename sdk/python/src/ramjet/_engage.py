"""`engage`: one engagement with a worker of the market, and its tasks.

Life: connect and offer; granted and opened, or an error that says why not; tasks, at most `concurrency` without an
answer; the end, once every answer is here, by leaving the `async with`; settled. Leaving it by an exception cancels.

Every result is judged here, by `judge` or as accepted, since only judged results count in receipts. Each task has
exactly one final word: a result, or an error of `ramjet.TaskError`, or `EngagementClosed` if it never got one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Union

from . import _market as market
from ._local import Payload, payload_bytes
from ._paths import local_socket
from ._skill import TASK_LEN_MAX, Out
from ._units import Duration, nanoseconds, whole
from .errors import (
    Diagnosis,
    EngagementClosed,
    GateRefused,
    NodeError,
    NodeRefused,
    OfferExpired,
    OfferRefused,
    ProtocolError,
    RamjetError,
    Rejected,
    TaskFailed,
    refusal,
)

#: Tasks outstanding at a time, at most: the slots of a channel.
CONCURRENCY_MAX = 4_096


@dataclass(frozen=True)
class Timing:
    """How one answer came about, in nanoseconds."""

    #: From the first send of the task to the arrival of its answer at the node.
    round_trip_ns: int
    #: Of that, the skill's time.
    busy_ns: int
    #: Of that, from the task's arrival at the worker until its skill began.
    staged_ns: int


class _Sink(Protocol):
    """Who waits for the answers of some tasks."""

    def source(self) -> Iterator[tuple[int, bytes]]:
        """Key and payload of each task, in order."""

    def deliver(self, key: int, result: Union[bytes, RamjetError], times: tuple[int, int, int]) -> None:
        """The final word on one task."""

    def piece(self, key: int, piece: bytes) -> None:
        """Progress of one task."""

    def fail(self, error: Exception) -> None:
        """The source itself failed, or the engagement ended: no further word."""


class Task:
    """One submitted task: await it for its result, iterate over `progress()` for what comes before.

    A wait that is cancelled gives the result up; the task itself runs on.
    """

    __slots__ = ("_payload", "_future", "_pieces", "_times")

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._pieces: asyncio.Queue[bytes | None] | None = None
        self._times: tuple[int, int, int] | None = None

    def __await__(self) -> Generator[Any, None, bytes]:
        return self._future.__await__()

    def done(self) -> bool:
        """Whether it has its final word."""
        return self._future.done()

    @property
    def timing(self) -> Timing | None:
        """How its answer came about, once it is there."""
        return None if self._times is None else Timing(*self._times)

    async def progress(self) -> AsyncIterator[bytes]:
        """The pieces of progress in order, until the answer is there. For one reader, from the start."""
        queue = self._queue()
        while (piece := await queue.get()) is not None:
            yield piece

    def forget(self) -> None:
        """Nobody will ask for the result: an error of it is no longer reported as unseen."""
        self._future.add_done_callback(lambda future: future.cancelled() or future.exception())

    def source(self) -> Iterator[tuple[int, bytes]]:
        """See `_Sink`."""
        return iter(((0, self._payload),))

    def deliver(self, key: int, result: Union[bytes, RamjetError], times: tuple[int, int, int]) -> None:
        """See `_Sink`."""
        self._times = times
        future = self._future
        if isinstance(result, bytes):
            if not future.done():
                future.set_result(result)
            if self._pieces is not None:
                self._pieces.put_nowait(None)
        else:
            self.fail(result)

    def piece(self, key: int, piece: bytes) -> None:
        """See `_Sink`."""
        self._queue().put_nowait(piece)

    def fail(self, error: Exception) -> None:
        """See `_Sink`."""
        if not self._future.done():
            self._future.set_exception(error)
        if self._pieces is not None:
            self._pieces.put_nowait(None)

    def _queue(self) -> asyncio.Queue[bytes | None]:
        if self._pieces is None:
            self._pieces = asyncio.Queue()
            if self._future.done():
                self._pieces.put_nowait(None)
        return self._pieces


class _Map:
    """The tasks of one `map`: a list that fills, and one future for all of it."""

    def __init__(self, items: Iterable[Payload]) -> None:
        self.results: list[Union[bytes, RamjetError]] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._items = items
        self._answered = 0
        self._drawn = False

    def source(self) -> Iterator[tuple[int, bytes]]:
        results, missing = self.results, _MISSING
        for key, item in enumerate(self._items):
            payload = payload_bytes(item)
            results.append(missing)
            yield key, payload
        self._drawn = True
        self._check()

    def deliver(self, key: int, result: Union[bytes, RamjetError], times: tuple[int, int, int]) -> None:
        self.results[key] = result
        self._answered += 1
        if self._drawn:
            self._check()

    def piece(self, key: int, piece: bytes) -> None:
        pass

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)

    def _check(self) -> None:
        if self._answered == len(self.results) and not self.done.done():
            self.done.set_result(None)


_MISSING = b""


class Engagement:
    """An engagement with one worker. Made by `engage`; used by ``async with``."""

    def __init__(self, path: str, submit: dict[str, Any], judge: Callable[[bytes, bytes], bool] | None) -> None:
        self._path = path
        self._submit = submit
        self._judge = judge
        self._link: market.Link | None = None
        self._limit: int = submit["concurrency"]
        self._token = 0
        self._pending: dict[int, tuple[_Sink, int, bytes | None]] = {}
        self._sources: deque[tuple[Iterator[tuple[int, bytes]], _Sink, int | None]] = deque()
        self._out: list[bytes] = []
        self._opened: asyncio.Future[None] | None = None
        self._ended: asyncio.Future[None] | None = None
        self._failure: RamjetError | None = None
        self._ending = self._end_said = self._feeding = False
        #: Its number, the worker that has it and that worker's address, once granted.
        self.engagement: int | None = None
        self.worker: int | None = None
        self.worker_address: str | None = None
        #: Polo of worker and requester when it was granted.
        self.polo: tuple[int, int] | None = None
        #: Counts of the node: tasks, done, accepted, rejected, failed, expired, refused …; final after the end.
        self.totals: dict[str, int] = {}
        #: What the registry booked, once settled.
        self.settlement: dict[str, Any] | None = None

    # What is asked.

    async def map(
        self,
        items: Iterable[Payload],
        *,
        deadline: Duration | None = None,
        return_exceptions: bool = False,
        out: Out | None = None,
    ) -> Any:
        """Has every item done and returns the results in the order of the items.

        Items are drawn as places become free, so a generator of any length will do.

        Args:
            items: payloads: bytes, text, arrays.
            deadline: how long each task may take from its arrival at the worker; what will miss it is refused as `Late`.
            return_exceptions: give a task's error as its result, instead of raising the first of them at the end.
            out: the worker's fixed-size output, such as ``ramjet.f32(384)``: then the results are one numpy array.

        Raises:
            TaskError: what became of the first task without a result.
            EngagementClosed: the engagement ended before all were answered.
        """
        sink = _Map(items)
        self._add(sink, deadline)
        await sink.done
        if not return_exceptions:
            for result in sink.results:
                if not isinstance(result, bytes):
                    raise result
        if out is None:
            return sink.results
        return out.stack([result for result in sink.results if isinstance(result, bytes)])

    def submit(self, item: Payload, *, deadline: Duration | None = None) -> Task:
        """Has one item done; await what it returns. It waits its turn if `concurrency` tasks are out."""
        task = Task(payload_bytes(item))
        self._add(task, deadline)
        return task

    async def stream(
        self, items: Union[Iterable[Payload], AsyncIterable[Payload]], *, deadline: Duration | None = None
    ) -> AsyncIterator[bytes]:
        """Results in the order of the items, as they come; no more items are drawn than `concurrency` ahead.

        Raises:
            TaskError: what became of the first task without a result.
        """
        waiting: deque[Task] = deque()
        try:
            async for item in _each(items):
                waiting.append(self.submit(item, deadline=deadline))
                if len(waiting) >= self._limit:
                    yield await waiting.popleft()
            while waiting:
                yield await waiting.popleft()
        finally:
            for task in waiting:
                task.forget()

    async def __aenter__(self) -> Engagement:
        loop = asyncio.get_running_loop()
        self._opened, self._ended = loop.create_future(), loop.create_future()
        self._link = await market.connect(self._path, lambda: market.Link(self))
        self._link.write(market.json_frame(self._submit))
        try:
            await self._opened
        except BaseException:
            self._link.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._link is not None and self._ended is not None, "entered before it is left"
        if kind is None:
            self._ending = True
            self._feed()
            try:
                await self._ended
            finally:
                self._link.close()
            if self._failure is not None:
                raise self._failure
        else:
            # Closing the connection cancels the engagement at the node.
            self._link.close()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ended

    # Inside: towards the node.

    def _add(self, sink: _Sink, deadline: Duration | None) -> None:
        if self._link is None or self._ending or self._ended is None or self._ended.done():
            raise self._failure or EngagementClosed("it is not open: use it inside `async with`")
        deadline_us = None
        if deadline is not None:
            deadline_us = nanoseconds("deadline", deadline, 1_000, 0xFFFF_FFFF * 1_000) // 1_000
        self._sources.append((sink.source(), sink, deadline_us))
        if not self._feeding:
            # What is submitted in the same turn of the loop leaves in one write.
            self._feeding = True
            asyncio.get_running_loop().call_soon(self._feed)

    def _feed(self) -> None:
        """Draws tasks while there are places, and writes all that is due in one piece."""
        self._feeding = False
        if self._ended is None or self._ended.done():
            return
        link, pending, out = self._link, self._pending, self._out
        assert link is not None, "fed before it is connected"
        while self._sources and len(pending) < self._limit and link.writable:
            source, sink, deadline_us = self._sources[0]
            try:
                key, payload = next(source)
            except StopIteration:
                self._sources.popleft()
                continue
            except Exception as error:
                self._sources.popleft()
                sink.fail(error)
                continue
            if len(payload) > TASK_LEN_MAX:
                sink.deliver(key, refusal("too_big"), (0, 0, 0))
                continue
            self._token = token = self._token + 1
            pending[token] = (sink, key, payload if self._judge else None)
            out.append(market.task_frame(token, payload, deadline_us))
        if self._ending and not self._sources and not pending and not self._end_said:
            self._end_said = True
            out.append(market.json_frame({"op": "end"}))
        if out:
            link.write(b"".join(out))
            out.clear()

    # Inside: from the node, see `market.Receiver`.

    def _on_answer(self, token: int, status: int, times: tuple[int, int, int], data: bytes) -> None:
        if status not in (market.DONE, market.FAILED, market.REFUSED):
            raise ProtocolError(f"an answer of status {status} from the node")
        waiting = self._pending.pop(token, None)
        if waiting is None:
            raise ProtocolError(f"an answer to task {token}, which is not out")
        sink, key, payload = waiting
        if status == market.DONE:
            accepted = self._judge is None or self._judged(payload or b"", data)
            self._out.append(market.verdict_frame(token, accepted))
            sink.deliver(key, data if accepted else Rejected(data), times)
        elif status == market.FAILED:
            sink.deliver(key, TaskFailed(data.decode("utf-8", "replace")), times)
        else:
            sink.deliver(key, refusal(data.decode("utf-8", "replace")), times)

    def _judged(self, payload: bytes, result: bytes) -> bool:
        assert self._judge is not None, "asked only where there is a judge"
        try:
            return bool(self._judge(payload, result))
        except Exception as error:
            # A judge that fails must not hang the engagement: it ends, and the error is told.
            self._finish(error)
            return True

    def _on_progress(self, token: int, piece: bytes) -> None:
        waiting = self._pending.get(token)
        if waiting is not None:
            waiting[0].piece(waiting[1], piece)

    def _on_batch_end(self) -> None:
        self._feed()

    def _on_writable(self) -> None:
        self._feed()

    def _on_closed(self, error: Exception | None) -> None:
        if self._ended is not None and not self._ended.done():
            told = (
                error
                if isinstance(error, RamjetError)
                else NodeError(f"socket {self._path}: the node closed the connection{f': {error}' if error else ''}")
            )
            self._finish(told)

    def _on_json(self, message: dict[str, Any]) -> None:
        try:
            reply = message.get("reply")
            if reply == "error":
                self._finish(NodeRefused(str(message["error"])))
            elif reply == "submitted":
                self._limit = min(self._limit, whole("window", message["window"], 1, 1 << 20))
            elif reply == "event":
                self._on_event(message["event"])
            else:
                raise ProtocolError(f"a reply {reply!r} during an engagement")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ProtocolError(f"an unfitting message from the node: {message!r}: {error!r}") from error

    def _on_event(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "granted":
            self.engagement, self.worker = event["engagement"], event["worker"]
            self.worker_address, self.polo = event["worker_address"], (event["polo"][0], event["polo"][1])
        elif kind == "opened":
            if self._opened is not None and not self._opened.done():
                self._opened.set_result(None)
        elif kind == "progress":
            self.totals = event["totals"]
        elif kind == "settled":
            self.settlement = event["settlement"]
        elif kind == "ended":
            self.totals = event["totals"]
            self.settlement = event["settlement"] or self.settlement
            self._finish(_failure(self._submit["skill"], event["outcome"]))

    def _finish(self, failure: Exception | None) -> None:
        """The last word on the engagement; whatever still waits gets it."""
        if self._ended is None or self._ended.done():
            return
        if isinstance(failure, RamjetError) or failure is None:
            self._failure = failure
        self._ended.set_result(None)
        told = failure or EngagementClosed("it ended before this task was answered")
        if self._opened is not None and not self._opened.done():
            self._opened.set_exception(told)
        for sink in {id(sink): sink for sink, _, _ in self._pending.values()}.values():
            sink.fail(told)
        for _, sink, _ in self._sources:
            sink.fail(told)
        self._pending.clear()
        self._sources.clear()
        if failure is not None and self._link is not None:
            self._link.close()


async def _each(items: Union[Iterable[Payload], AsyncIterable[Payload]]) -> AsyncIterator[Payload]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


def _failure(skill: str, outcome: dict[str, Any]) -> RamjetError | None:
    """The error of an outcome; None if the work was settled, or will be once the registry is back."""
    kind = outcome["outcome"]
    if kind in ("settled", "spooled"):
        return None
    if kind == "refused":
        told = outcome["refusal"]
        diagnosis = Diagnosis(told["diagnosis"]) if told.get("diagnosis") else None
        refused = GateRefused if told["code"] == "gate" else OfferRefused
        return refused(told["code"], told["reason"], diagnosis)
    if kind == "expired":
        diagnosis = Diagnosis(outcome["diagnosis"]) if outcome.get("diagnosis") else None
        return OfferExpired(skill, outcome["notified"], (outcome["polo"][0], outcome["polo"][1]), diagnosis)
    if kind == "closed":
        return EngagementClosed(outcome["reason"])
    return EngagementClosed(f"{kind}: {outcome.get('why', 'no further word')}")


def engage(
    skill: str,
    *,
    tasks: int = 1_000_000,
    concurrency: int = 256,
    min_polo: int | None = None,
    filters: Mapping[str, str] | None = None,
    deadline: Duration | None = None,
    duration: Duration = "1h",
    accept_within: Duration = "10s",
    judge: Callable[[bytes, bytes], bool] | None = None,
    socket_path: str | os.PathLike[str] | None = None,
) -> Engagement:
    """An engagement for tasks of one skill: ``async with ramjet.engage("embed", tasks=1000) as market: …``.

    Args:
        skill: what is wanted.
        tasks: most tasks that it may carry.
        concurrency: tasks without an answer at a time, 1 to 4,096; a node holds at most 1,024 of a program.
        min_polo: least polo of the worker; None for any.
        filters: capabilities that the worker must have, such as ``{"model": "bge-small-en"}``.
        deadline: how long each task may take from its arrival at the worker, where `map` and `submit` say nothing else.
        duration: how long the engagement may last, up to 24 h.
        accept_within: how long the offer waits for a worker, up to 300 s; an offer that expires costs 1 polo.
        judge: called with payload and result; a result for which it says False is rejected and not paid for.
        socket_path: the node's local socket; else `RAMJET_SOCKET`, else the one in the state folder.

    Raises:
        On entering: NodeError, NodeRefused, OfferRefused, GateRefused, OfferExpired, EngagementClosed.
    """
    submit: dict[str, Any] = {
        "op": "submit",
        "skill": skill,
        "filters": [{"key": key, "value": value} for key, value in (filters or {}).items()],
        "tasks": whole("tasks", tasks, 1, (1 << 63) - 1),
        "concurrency": whole("concurrency", concurrency, 1, CONCURRENCY_MAX),
        "duration_s": -(-nanoseconds("duration", duration, 1, 86_400_000_000_000) // 1_000_000_000),
        "accept_deadline_ms": max(1, nanoseconds("accept_within", accept_within, 1, 300_000_000_000) // 1_000_000),
        "deadline_us": 0
        if deadline is None
        else nanoseconds("deadline", deadline, 1_000, 0xFFFF_FFFF * 1_000) // 1_000,
    }
    if min_polo is not None:
        submit["min_polo"] = whole("min_polo", min_polo, -(1 << 63), (1 << 63) - 1)
    return Engagement(os.fspath(local_socket(socket_path, requester=True)), submit, judge)


def run(skill: str, items: Iterable[Payload], *, out: Out | None = None, **options: Any) -> Any:
    """Has every item done, without asyncio: ``ramjet.run("embed", texts)``. Options are those of `engage`.

    Raises:
        As `engage` and `Engagement.map`.
    """

    async def whole_job() -> Any:
        async with engage(skill, **options) as engagement:
            return await engagement.map(items, out=out)

    return asyncio.run(whole_job())
