"""A batch of tasks as a skill sees it: lazy views on shared memory, valid until `run` returns.

Invariants: payloads are read-only; answers go only into the answer table and the results area; nothing is copied
before it is asked for. When the batch is over every view that was handed out is released, and one that a skill
has kept in spite of that is found by the count of references to the region's exporter and told as `ViewKept`.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from operator import add
from typing import TYPE_CHECKING, Any, Union, cast

from . import _layout as layout
from ._numpy import numpy_for
from ._skill import Out, Spec
from .errors import BatchOver, Busy, Late, ProtocolError, ViewKept

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The methods of a batch hide this name from its annotations.
Bytes = bytes

#: What one task's result may be: an exception fails that task, `Busy` and `Late` refuse it.
Result = Union[bytes, bytearray, memoryview, str, BaseException]


class Region:
    """One region of the arena, for as long as its connection lives."""

    __slots__ = ("number", "length", "exporter", "bytes", "words", "references", "pattern", "pattern_of")

    def __init__(self, arena: Any, number: int, length: int) -> None:
        self.number = number
        self.length = length
        self.exporter = (ctypes.c_ubyte * length).from_buffer(arena, number * length)
        self.bytes = memoryview(self.exporter).cast("B")
        self.words = self.bytes[: length & ~3].cast("I")
        self.references = self.count()
        #: The answer table of a batch whose tasks are all done with results of one size, and what it is for.
        self.pattern = array("I")
        self.pattern_of = (0, 0, 0)

    def count(self) -> int:
        """References to the exporter: one more while any view of a batch lives, whoever holds it."""
        return sys.getrefcount(self.exporter)

    def close(self) -> None:
        """Releases the views of the connection itself."""
        self.words.release()
        self.bytes.release()


class Batch(Sequence[memoryview]):
    """The tasks of one call of `run`. A sequence of its payloads; its length is the number of tasks.

    Everything that it hands out lies in memory shared with the node and ends with `run`: a released view raises
    `ValueError` when it is touched, the batch itself raises `BatchOver`. A numpy array cannot be revoked; one that is
    kept fails its batch with `ViewKept`. What must live on is copied: ``bytes(view)``, ``array.copy()``.
    """

    __slots__ = (
        "_region", "_told", "_spec", "_send", "_epoch", "_piece_max",
        "_offsets", "_lens", "_memory", "_views", "_out", "_fates",
    )  # fmt: skip

    def __init__(
        self,
        region: Region,
        told: layout.BatchPacket,
        spec: Spec,
        epoch: int,
        send: Callable[[Bytes], Any],
        piece_max: int,
    ) -> None:
        n, words = told.n, region.words
        self._region: Region | None = region
        self._told = told
        self._spec = spec
        self._epoch = epoch
        self._send = send
        self._piece_max = piece_max
        self._memory: memoryview | None = None
        self._views: list[memoryview] | None = None
        self._out: Any = None
        self._fates: dict[int, tuple[int, Bytes]] = {}
        expected = layout.REGION_HEADER.pack(
            layout.MAGIC, layout.ABI, layout.HEADER_LEN, epoch, n, told.batch, told.earliest_deadline_ns, told.work,
            told.result_offset, told.result_len,
        )  # fmt: skip
        if region.bytes[: layout.HEADER_LEN] != expected:
            raise ProtocolError(f"batch {told.batch}: region {told.region} holds another batch than the packet says")
        # A task is eight words: key and deadline two each, then offset, length, work, flags.
        end = 16 + 8 * n
        self._offsets: list[int] = words[20:end:8].tolist()
        self._lens: list[int] = words[21:end:8].tolist()
        self._check(n)

    def _check(self, n: int) -> None:
        told = self._told
        first, last = layout.payload_offset(n), told.result_offset
        if min(self._offsets) < first or max(map(add, self._offsets, self._lens)) > last:
            raise ProtocolError(f"batch {told.batch}: a payload lies outside [{first}, {last}) of its region")

    # What is asked.

    def __len__(self) -> int:
        return self._told.n

    def __getitem__(self, index: Any) -> Any:
        return self.payloads[index]

    def __iter__(self) -> Iterator[memoryview]:
        return iter(self.payloads)

    @property
    def payloads(self) -> Sequence[memoryview]:
        """The payloads, read-only, in order, without a copy."""
        if self._views is None:
            memory = self._payload_memory()
            self._views = [memory[at : at + length] for at, length in zip(self._offsets, self._lens)]
        return self._views

    def bytes(self, index: int) -> Bytes:
        """A copy of one payload."""
        at = self._offsets[self._index(index)]
        return self._open().bytes[at : at + self._lens[index]].tobytes()

    @property
    def texts(self) -> list[str]:
        """The payloads as text. A payload that is no UTF-8 fails its own task and stands here as an empty text."""
        region, offsets = self._open(), self._offsets
        base = offsets[0]
        whole = region.bytes[base : self._told.result_offset].tobytes()
        texts = []
        for i, (at, length) in enumerate(zip(offsets, self._lens)):
            try:
                texts.append(whole[at - base : at - base + length].decode())
            except UnicodeDecodeError as error:
                self.fail(i, f"the payload is no UTF-8: byte {error.start} of {length}")
                texts.append("")
        return texts

    def array(self, dtype: Any, shape: tuple[int, ...] | None = None) -> NDArray[Any]:
        """The payloads as one read-only array, a row of `shape` for each task; one dimension without it.

        It is a view, without a copy, if the payloads have the same length. With `shape`, a payload of another
        length fails its own task and stands here as zeroes, in a copy.

        Raises:
            ValueError: the lengths differ or are no multiple of the element, and no `shape` says which is right.
        """
        numpy = numpy_for("Batch.array")
        element = numpy.dtype(dtype)
        n, lens = len(self), self._lens
        if shape is None:
            if lens.count(lens[0]) != n or lens[0] % element.itemsize:
                raise ValueError(
                    f"payloads of {min(lens)} to {max(lens)} bytes are no rows of {element}: give the shape of one task's"
                )
            shape = (lens[0] // element.itemsize,)
        row = element.itemsize
        for extent in shape:
            row *= extent
        if lens.count(row) != n:
            return cast("NDArray[Any]", self._array_of_some(numpy, element, shape, row))
        strides = [element.itemsize]
        for extent in reversed(shape[1:]):
            strides.insert(0, strides[0] * extent)
        view = numpy.ndarray(
            (n, *shape),
            element,
            self._payload_memory(),
            self._offsets[0],
            ((row + 7) & ~7, *(strides if shape else ())),
        )
        return cast("NDArray[Any]", view)

    def _array_of_some(self, numpy: Any, element: Any, shape: tuple[int, ...], row: int) -> Any:
        rows = numpy.zeros((len(self), *shape), element)
        for i, length in enumerate(self._lens):
            if length == row:
                rows[i] = numpy.frombuffer(self.bytes(i), element).reshape(shape)
            else:
                self.fail(i, f"a payload of {length} bytes, {element}{list(shape)} has {row}")
        rows.flags.writeable = False
        return rows

    @property
    def out(self) -> NDArray[Any]:
        """The results area as an array, a row for each task, for a skill whose `out` is `f32(…)` or a sibling.

        What is written here is the result; `run` then returns None.

        Raises:
            TypeError: the skill's results have no fixed size.
        """
        if self._out is None:
            out = self._fixed()
            memory = memoryview(self._open().exporter).cast("B")
            self._out = numpy_for("Batch.out").ndarray(
                (len(self), *out.shape), out.dtype, memory, self._told.result_offset
            )
        return cast("NDArray[Any]", self._out)

    @property
    def deadline(self) -> float | None:
        """The earliest deadline of its tasks, in seconds on the clock of `time.monotonic`; None if none has one."""
        ns = self._told.earliest_deadline_ns
        return ns / 1e9 if ns else None

    @property
    def deadlines(self) -> list[float | None]:
        """The deadline of each task, as in `deadline`."""
        words = self._open().words
        table = words[16 : 16 + 8 * len(self)]
        pairs = zip(table[2::8].tolist(), table[3::8].tolist())
        return [(low | high << 32) / 1e9 if low or high else None for low, high in pairs]

    @property
    def work(self) -> int:
        """Work units of all its tasks, counted as the skill's `work` says."""
        return self._told.work

    @property
    def alive(self) -> list[bool]:
        """Which tasks are still wanted, as of now: False once the node says that the deadline has passed."""
        words = self._open().words
        return [not flags & layout.UNWANTED for flags in words[23 : 16 + 8 * len(self) : 8].tolist()]

    # What is answered beside the results.

    def fail(self, index: int, reason: str) -> None:
        """Fails one task; whatever `run` gives for it does not count."""
        self._fates[self._index(index)] = (layout.ANSWER_FAILED, layout.reason_bytes(str(reason)))

    def refuse(self, index: int, why: Union[Busy, Late, type[Busy], type[Late]] = Busy) -> None:
        """Refuses one task, as `Busy` or as `Late`; whatever `run` gives for it does not count."""
        late = why is Late or isinstance(why, Late)
        self._fates[self._index(index)] = (layout.ANSWER_LATE if late else layout.ANSWER_BUSY, b"")

    def progress(self, index: int, piece: Union[Bytes, bytearray, memoryview]) -> None:
        """Sends one piece of progress on a task to its requester, at once.

        Raises:
            ValueError: it is longer than a piece may be.
        """
        if len(piece) > self._piece_max:
            raise ValueError(f"a piece of progress of {len(piece)} bytes, at most {self._piece_max}")
        self._index(index)
        body = layout.PROGRESS_BODY.pack(self._told.batch, index, 0) + piece
        self._send(layout.packet(layout.PROGRESS, self._epoch, body))

    def heartbeat(self) -> None:
        """Says that this process still works on the batch: the node's stall clock starts anew."""
        self._open()
        self._send(layout.packet(layout.ALIVE, self._epoch, layout.BATCH_ID.pack(self._told.batch)))

    def __repr__(self) -> str:
        state = "over" if self._region is None else "open"
        return f"<Batch {self._told.batch} of {self._spec.name!r}: {len(self)} tasks, {state}>"

    # Inside.

    def _open(self) -> Region:
        if self._region is None:
            raise BatchOver(f"batch {self._told.batch} is over: its memory belongs to other tasks")
        return self._region

    def _payload_memory(self) -> memoryview:
        if self._memory is None:
            # A memoryview of its own for each batch: whatever is sliced from it keeps the exporter referenced.
            self._memory = memoryview(self._open().exporter).cast("B").toreadonly()
        return self._memory

    def _index(self, index: int) -> int:
        self._open()
        if not 0 <= index < len(self):
            raise IndexError(f"task {index} of a batch of {len(self)}")
        return index

    def _fixed(self) -> Out:
        if self._spec.out is None:
            raise TypeError(
                f"skill {self._spec.name!r} has no fixed-size results: declare out=ramjet.f32(…) to fill batch.out"
            )
        return self._spec.out

    def _close(self) -> bool:
        """Ends every view; false if the skill has kept one of them alive."""
        region = self._region
        if region is None:
            return True
        self._region = self._out = None
        view: memoryview | None
        for view in itertools.chain(self._views or (), (self._memory,)):
            try:
                if view is not None:
                    view.release()
            except BufferError:
                # An array stands on it; whether that lives on is told below.
                continue
        self._views = self._memory = view = None
        if region.count() <= region.references:
            return True
        # A cycle that nobody holds any more, such as a traceback's, is not kept by the skill.
        gc.collect()
        before, region.references = region.references, region.count()
        return region.references <= before

    def kept_words(self) -> ViewKept:
        """The error for a skill that kept a view."""
        return ViewKept(
            f"run kept a view of batch {self._told.batch} beyond it; copy what must live on: bytes(view), array.copy()"
        )
