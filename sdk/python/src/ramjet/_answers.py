"""From what `run` gave to the answer table and the results area.

Two ways. The common one: every task is done, results are bytes or rows of one array; columns are computed and written
whole. The other, for a batch in which some task failed, was refused, or has a result that is text or too long:
each task on its own. Nothing is written outside what the batch may write.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from . import _layout as layout
from ._batch import Batch, Region
from ._numpy import numpy_for, plain_array
from ._skill import REASON_ROOM, Out
from .errors import Busy, Late


def fill(batch: Batch, returned: Any) -> None:
    """Writes the answers of a batch.

    Raises:
        TypeError, ValueError: what `run` returned is not one result for each task; the whole batch fails with it.
    """
    out = batch._spec.out
    if out is not None and not _is_listed(returned):
        _fill_rows(batch, out, returned)
        return
    results = returned if isinstance(returned, (list, tuple)) else _listed(returned)
    if len(results) != len(batch):
        raise ValueError(f"run returned {len(results)} results for {len(batch)} tasks")
    if batch._fates or not _fill_bytes(batch, results):
        _fill_each(batch, results)


def _listed(returned: Any) -> list[Any]:
    """The results of a `run` that returned no list.

    Raises:
        TypeError: it returned nothing, or one thing for all.
    """
    if returned is None:
        raise TypeError("run returned nothing; it returns one result for each task")
    if isinstance(returned, (str, bytes, bytearray, memoryview, Mapping)):
        raise TypeError(
            f"run returned one {type(returned).__name__}; it returns a sequence with one result for each task"
        )
    return list(returned)


def refuse_all(batch: Batch, status: int) -> None:
    """Answers every task of a batch with one refusal."""
    n, region = len(batch), batch._open()
    region.words[_table(n) : _table(n) + 4 * n] = array("I", (status, 0, 0, 0)) * n


def _is_listed(returned: Any) -> bool:
    """Whether results came one by one, as bytes or the like, rather than as one array."""
    if isinstance(returned, Batch):
        return True
    if not isinstance(returned, (list, tuple)):
        return False
    return any(isinstance(result, (bytes, bytearray, memoryview, str, BaseException)) for result in returned)


def _table(n: int) -> int:
    """First word of the answer table."""
    return (layout.HEADER_LEN + n * layout.TASK_LEN) // 4


def _fill_bytes(batch: Batch, results: Sequence[Any]) -> bool:
    """The common way for results as bytes; False, with nothing written, if they are not all short enough bytes."""
    spec, told, region = batch._spec, batch._told, batch._open()
    try:
        lens = list(map(len, results))
        joined = b"".join(results)
    except (TypeError, BufferError):
        return False
    # A view whose elements are longer than a byte has another length than its bytes.
    if len(joined) != sum(lens) or max(lens) > spec.result_len:
        return False
    if spec.out is not None and lens.count(spec.out.stride) != told.n:
        return False
    n, at = told.n, told.result_offset
    region.bytes[at : at + len(joined)] = joined
    table = _table(n)
    words = region.words
    if n == 1:
        words[table], words[table + 1], words[table + 2] = layout.ANSWER_DONE, at, lens[0]
        return True
    lengths = array("I", lens)
    words[table : table + 4 * n : 4] = array("I", (layout.ANSWER_DONE,)) * n
    words[table + 1 : table + 4 * n : 4] = array("I", list(accumulate(lens[:-1], initial=at)))
    words[table + 2 : table + 4 * n : 4] = lengths
    return True


def _fill_rows(batch: Batch, out: Out, returned: Any) -> None:
    """Results of one size: `batch.out` was filled, or an array with a row for each task was returned."""
    if returned is None:
        if batch._out is None:
            raise TypeError("run returned nothing and did not fill batch.out")
    elif returned is not batch._out:
        rows = plain_array(returned)
        if rows.shape != (len(batch), *out.shape):
            raise ValueError(f"run returned an array of shape {rows.shape}, must be {(len(batch), *out.shape)}")
        numpy_for("a result that is an array").copyto(batch.out, rows, casting="same_kind")
    n, told, region = len(batch), batch._told, batch._open()
    table = _table(n)
    region.words[table : table + 4 * n] = _pattern(region, n, told.result_offset, out.stride)
    for place, (index, (status, reason)) in enumerate(batch._fates.items()):
        at = told.result_offset
        if out.stride >= REASON_ROOM:
            at, room = at + index * out.stride, out.stride
        else:
            at, room = at + n * out.stride + place * REASON_ROOM, REASON_ROOM
        _tell(region, table, index, status, at, layout.reason_bytes(reason.decode(), min(room, layout.REASON_LEN_MAX)))


def _pattern(region: Region, n: int, at: int, stride: int) -> array[int]:
    """The answer table of n tasks that are done with results of one size; kept, since batches are often alike."""
    if region.pattern_of != (n, at, stride):
        table = array("I", (layout.ANSWER_DONE, 0, stride, 0)) * n
        table[1::4] = array("I", range(at, at + n * stride, stride))
        region.pattern, region.pattern_of = table, (n, at, stride)
    return region.pattern


def _fill_each(batch: Batch, results: Sequence[Any]) -> None:
    """The other way: each task by itself, one after the other through the results area."""
    spec, told, region = batch._spec, batch._told, batch._open()
    table = _table(told.n)
    at = told.result_offset
    for i, result in enumerate(results):
        status, told_bytes = batch._fates.get(i) or _one(result, spec.result_len, spec.out)
        if status == layout.ANSWER_FAILED:
            told_bytes = layout.reason_bytes(told_bytes.decode(), min(spec.result_len_max, layout.REASON_LEN_MAX))
        place = told.result_offset + i * spec.result_stride if spec.result_stride else at
        _tell(region, table, i, status, place, told_bytes)
        at += len(told_bytes)


def _tell(region: Region, table: int, index: int, status: int, at: int, told_bytes: bytes) -> None:
    region.bytes[at : at + len(told_bytes)] = told_bytes
    region.words[table + 4 * index : table + 4 * index + 4] = array("I", (status, at, len(told_bytes), 0))


def _one(result: Any, limit: int, out: Out | None) -> tuple[int, bytes]:
    """Status and bytes of one task's result."""
    if isinstance(result, BaseException):
        if isinstance(result, (Busy, Late)):
            return (layout.ANSWER_BUSY if isinstance(result, Busy) else layout.ANSWER_LATE), b""
        return layout.ANSWER_FAILED, failure_text(result).encode("utf-8", "replace")
    if isinstance(result, str):
        encoded = result.encode("utf-8", "replace")
    else:
        try:
            encoded = memoryview(result).tobytes()
        except TypeError:
            text = f"run gave a {type(result).__name__} for this task; a result is bytes, str or an exception"
            return layout.ANSWER_FAILED, text.encode()
    if out is not None and len(encoded) != out.stride:
        return layout.ANSWER_FAILED, f"a result of {len(encoded)} bytes, must be {out.stride} (out=)".encode()
    if len(encoded) > limit:
        return layout.ANSWER_FAILED, f"a result of {len(encoded)} bytes, at most {limit} (out=)".encode()
    return layout.ANSWER_DONE, encoded


def failure_text(error: BaseException) -> str:
    """An exception as the reason that its requester reads."""
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
