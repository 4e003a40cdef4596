"""One connection of a skill to its node: greeting, batches, answers.

Contract: `Agent` knows nothing of sockets; it is given packets and a function that sends them, so that `serve` runs it
on a socket and `local` runs it alone. It trusts nothing that it is told about offsets and lengths.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from . import _layout as layout
from ._answers import failure_text, fill, refuse_all
from ._batch import Batch, Region
from ._skill import Model, Spec
from ._units import whole
from .errors import Busy, Late, ProtocolError

log = logging.getLogger("ramjet")

VERSION = "0.1.0"
SDK = f"ramjet-python {VERSION}"
#: Largest arena that is mapped.
ARENA_LEN_MAX = 1 << 34


@dataclass(frozen=True)
class Welcome:
    """What the node says of itself and of the arena."""

    node: int
    name: str
    arena_len: int
    region_len: int
    regions: int
    max_batch: int
    result_len_max: int
    progress_len_max: int = 1_310

    @staticmethod
    def parse(body: bytes) -> Welcome:
        """Reads the body of WELCOME; members that are not known are ignored.

        Raises:
            ProtocolError: it is no such JSON, or its numbers contradict one another.
        """
        try:
            members = json.loads(body)
            known = {field.name for field in fields(Welcome)}
            welcome = Welcome(**{name: value for name, value in members.items() if name in known})
            whole("regions", welcome.regions, 1, layout.REGIONS_MAX)
            whole("region_len", welcome.region_len, layout.payload_offset(1), 0xFFFF_FFFF)
            whole("arena_len", welcome.arena_len, welcome.regions * welcome.region_len, ARENA_LEN_MAX)
            whole("max_batch", welcome.max_batch, 1, layout.BATCH_MAX)
            whole("result_len_max", welcome.result_len_max, 1, 0xFFFF_FFFF)
            whole("progress_len_max", welcome.progress_len_max, 0, layout.PACKET_LEN_MAX)
        except (ValueError, TypeError, AttributeError) as error:
            raise ProtocolError(f"WELCOME: {error}") from error
        if welcome.region_len % 64:
            raise ProtocolError(f"WELCOME: region_len {welcome.region_len} is no multiple of 64")
        return welcome


def map_arena(descriptor: int, welcome: Welcome) -> mmap.mmap:
    """Maps the arena and closes the descriptor.

    Raises:
        ProtocolError: it is shorter than WELCOME says: touching it would end this process.
    """
    try:
        length = os.fstat(descriptor).st_size
        if length < welcome.arena_len:
            raise ProtocolError(f"an arena of {length} bytes, WELCOME says {welcome.arena_len}")
        return mmap.mmap(descriptor, welcome.arena_len)
    finally:
        os.close(descriptor)


class Agent:
    """Runs the batches of one connection."""

    def __init__(
        self, model: Model, welcome: Welcome, epoch: int, arena: mmap.mmap, send: Callable[[bytes], Any]
    ) -> None:
        self.spec: Spec = model.spec
        self.epoch = epoch
        self._run = model.run
        self._welcome = welcome
        self._arena = arena
        self._send = send
        self._regions = [Region(arena, number, welcome.region_len) for number in range(welcome.regions)]
        if welcome.result_len_max != self.spec.result_len_max:
            raise ProtocolError(
                f"WELCOME: result_len_max {welcome.result_len_max}, HELLO said {self.spec.result_len_max}"
            )

    def handle(self, told: layout.BatchPacket) -> None:
        """Runs one BATCH and sends DONE or FAILED.

        Raises:
            ProtocolError: the packet contradicts the arena; the connection is over.
        """
        self._check(told)
        region = self._regions[told.region]
        batch = Batch(region, told, self.spec, self.epoch, self._send, self._welcome.progress_len_max)
        spent, failure = self._answer(batch)
        if not batch._close() and failure is None:
            kept = batch.kept_words()
            log.error("%s", kept)
            failure = failure_text(kept)
        if failure is None:
            self._send(layout.DONE_PACKET.pack(layout.DONE, layout.ABI, self.epoch, told.batch, spent))
        else:
            reason = layout.BATCH_ID.pack(told.batch) + layout.reason_bytes(failure)
            self._send(layout.packet(layout.FAILED, self.epoch, reason))

    def _answer(self, batch: Batch) -> tuple[int, str | None]:
        """Calls `run` and writes its answers; how long `run` took, and the reason if the whole batch failed."""
        began = ended = time.monotonic_ns()
        try:
            try:
                returned = self._run(batch)
            finally:
                ended = time.monotonic_ns()
            fill(batch, returned)
        except (Busy, Late) as refused:
            refuse_all(batch, layout.ANSWER_BUSY if isinstance(refused, Busy) else layout.ANSWER_LATE)
        except Exception as error:
            log.exception("skill %r failed a batch of %d", self.spec.name, len(batch))
            return ended - began, failure_text(error)
        return ended - began, None

    def _check(self, told: layout.BatchPacket) -> None:
        welcome = self._welcome
        if told.region >= welcome.regions:
            raise ProtocolError(f"batch {told.batch}: region {told.region}, there are {welcome.regions}")
        if not 1 <= told.n <= min(welcome.max_batch, self.spec.max_batch):
            raise ProtocolError(f"batch {told.batch}: {told.n} tasks, must be 1 to {self.spec.max_batch}")
        if told.result_len != told.n * self.spec.result_len_max or told.result_offset % 64:
            raise ProtocolError(
                f"batch {told.batch}: results of {told.result_len} bytes at {told.result_offset}, must be "
                f"{told.n} x {self.spec.result_len_max} at a multiple of 64"
            )
        if not layout.payload_offset(told.n) <= told.result_offset <= welcome.region_len - told.result_len:
            raise ProtocolError(
                f"batch {told.batch}: results of {told.result_len} bytes at {told.result_offset}, the region has "
                f"{welcome.region_len}"
            )

    def close(self) -> None:
        """Unmaps the arena, unless a skill has kept a view of it: then it stays mapped as long as that lives."""
        for region in self._regions:
            region.close()
        self._regions.clear()
        try:
            self._arena.close()
        except BufferError:
            log.debug("a view of the arena outlives its connection")
