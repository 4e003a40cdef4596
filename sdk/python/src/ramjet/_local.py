"""`local`: a skill without a network, for tests and for a look.

The batch goes through the same arena layout, the same views and the same answers as at a node; only the node is
played, in this process, by the code that also checks the layout.
"""

from __future__ import annotations

import itertools
import mmap
import os
import time
from collections.abc import Iterable, Iterator
from typing import Any, Union

from . import _layout as layout
from ._agent import Agent, Welcome
from ._skill import Model
from ._units import Duration, nanoseconds
from .errors import Busy, Late, ProtocolError, TaskError, TaskFailed, TooBig

#: What can be a task's payload.
Payload = Union[bytes, bytearray, memoryview, str, Any]

_PROGRESS_MAX = 1_310


def payload_bytes(item: Payload) -> bytes:
    """A task's payload: bytes as they are, text in UTF-8, arrays by their memory.

    Raises:
        TypeError: it is nothing of these.
    """
    if isinstance(item, bytes):
        return item
    if isinstance(item, str):
        return item.encode()
    try:
        return memoryview(item).tobytes()
    except TypeError:
        raise TypeError(f"a {type(item).__name__} is no payload: give bytes, text or an array") from None


class Local:
    """A loaded skill. Made by `ramjet.local`; a context manager that frees its memory, or call `close`."""

    def __init__(self, skill: Any, device: str | None = None) -> None:
        self._model = Model(skill)
        self.spec = self._model.spec
        least = layout.room_needed([self.spec.max_payload], self.spec.result_len_max)
        wanted = layout.room_needed([1_024] * self.spec.max_batch, self.spec.result_len_max)
        length = (max(least, wanted) + 4_095) & ~4_095
        self._region_len = length
        descriptor = os.memfd_create("ramjet-local", os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, length)
            self._view = memoryview(mmap.mmap(descriptor, length))
            arena = mmap.mmap(descriptor, length)
        finally:
            os.close(descriptor)
        welcome = Welcome(
            0, self.spec.name, length, length, 1, self.spec.max_batch, self.spec.result_len_max, _PROGRESS_MAX
        )
        self._sent: list[bytes] = []
        self._agent = Agent(self._model, welcome, 1, arena, self._sent.append)
        self._batches = itertools.count(1)
        #: Pieces of progress of the last `map`, by the index of their item.
        self.progress: dict[int, list[bytes]] = {}
        self._model.load(device)

    def map(
        self, items: Iterable[Payload], *, deadline: Duration | None = None, return_exceptions: bool = False
    ) -> list[Any]:
        """Runs the skill over all items, in batches as large as it allows, and returns the results in order.

        Args:
            items: payloads.
            deadline: how long from now each task has.
            return_exceptions: give a task's error as its result, instead of raising the first of them.

        Raises:
            TaskFailed, Busy, Late, TooBig: what became of the first task without a result.
        """
        until = time.monotonic_ns() + nanoseconds("deadline", deadline, 1) if deadline is not None else 0
        most = self.spec.max_payload
        self.progress = {}
        results: list[Any] = []
        fitting: list[tuple[int, bytes]] = []
        for index, payload in enumerate(map(payload_bytes, items)):
            fits = len(payload) <= most
            results.append(None if fits else TooBig(f"a payload of {len(payload)} bytes, at most {most}"))
            if fits:
                fitting.append((index, payload))
        for batch in self._split(fitting):
            for (index, _), result in zip(batch, self._run(batch, until)):
                results[index] = result
        if not return_exceptions:
            for result in results:
                if isinstance(result, TaskError):
                    raise result
        return results

    def close(self) -> None:
        """Frees the arena."""
        self._agent.close()
        self._view.release()

    def __enter__(self) -> Local:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _split(self, tasks: list[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
        """Batches that the skill allows and the region holds."""
        spec = self.spec
        batch: list[tuple[int, bytes]] = []
        lens: list[int] = []
        for index, payload in tasks:
            lens.append(len(payload))
            work = sum(lens) if spec.work == "bytes" else len(lens)
            full = len(lens) > spec.max_batch or spec.max_work and work > spec.max_work
            if batch and (full or layout.room_needed(lens, spec.result_len_max) > self._region_len):
                yield batch
                batch, lens = [], [len(payload)]
            batch.append((index, payload))
        if batch:
            yield batch

    def _run(self, batch: list[tuple[int, bytes]], until: int) -> list[Any]:
        n, spec = len(batch), self.spec
        payloads = [payload for _, payload in batch]
        work = [len(payload) if spec.work == "bytes" else 1 for payload in payloads]
        told, _ = layout.write_batch(
            self._view, 0, 1, next(self._batches), payloads, spec.result_len_max, [until] * n, work
        )
        self._agent.handle(layout.parse_batch(layout.BATCH_BODY.pack(*told)))
        failure: str | None = None
        for packet in self._sent:
            kind, _, body = layout.parse_packet(packet)
            if kind == layout.FAILED:
                failure = body[layout.BATCH_ID.size :].decode()
            elif kind == layout.PROGRESS:
                _, place, _ = layout.PROGRESS_BODY.unpack_from(body)
                self.progress.setdefault(batch[place][0], []).append(body[layout.PROGRESS_BODY.size :])
        self._sent.clear()
        if failure is not None:
            return [TaskFailed(failure) for _ in payloads]
        return [_result(answer) for answer in layout.read_answers(self._view, told)]


def _result(answer: layout.Answer) -> bytes | TaskError:
    if answer.status == layout.ANSWER_DONE:
        return answer.bytes
    if answer.status == layout.ANSWER_FAILED:
        return TaskFailed(answer.bytes.decode("utf-8", "replace"))
    if answer.status == layout.ANSWER_LATE:
        return Late()
    if answer.status == layout.ANSWER_BUSY:
        return Busy()
    if answer.status == layout.NOT_ANSWERED:
        return TaskFailed("the agent did not answer this task")
    raise ProtocolError(f"an answer of status {answer.status}")


def local(skill: Any, *, device: str | None = None) -> Local:
    """Loads a skill in this process, without a node: ``ramjet.local(Embed).map(["a", "b"])``."""
    return Local(skill, device)
