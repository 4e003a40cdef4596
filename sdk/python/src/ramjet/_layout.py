"""The agent port byte for byte: packets of the socket and regions of the arena.

Contract: this file alone knows where anything lies. It writes both directions, so that `local` and the tests play
the node with the same words. Integers are little-endian, offsets in bytes; `docs/WIRE.md` has the tables.

    packet   kind u16 | abi u16 | epoch u32 | body
    region   header 64 | task[n] 32 each | answer[n] 16 each | payloads, each at a multiple of 8 | results
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from .errors import ProtocolError

ABI = 1
MAGIC = 0x4A52_4D31
#: Longest packet of the socket.
PACKET_LEN_MAX = 65_536
#: Longest reason that is told, in bytes.
REASON_LEN_MAX = 1_024
#: Most tasks of one batch.
BATCH_MAX = 4_096
#: Regions of an arena, and so batches in flight, at most.
REGIONS_MAX = 16

HELLO, WELCOME, REFUSED, READY, BATCH, DONE, FAILED, PROGRESS, DRAIN, BYE, ALIVE = range(1, 12)

NOT_ANSWERED, ANSWER_DONE, ANSWER_FAILED, ANSWER_LATE, ANSWER_BUSY = range(5)

#: Bit 0 of a task's flags: nobody wants it any more.
UNWANTED = 1

HEADER_LEN = 64
TASK_LEN = 32
ANSWER_LEN = 16

PACKET = struct.Struct("<HHI")
BATCH_BODY = struct.Struct("<QIIQQII")
DONE_BODY = struct.Struct("<QQ")
#: Header and body of BATCH, and of DONE, in one: the two packets of every batch.
BATCH_PACKET = struct.Struct("<HHIQIIQQII")
DONE_PACKET = struct.Struct("<HHIQQ")
BATCH_ID = struct.Struct("<Q")
PROGRESS_BODY = struct.Struct("<QII")
#: magic, abi, header_len, epoch, n, batch, earliest_deadline_ns, work, result_offset, result_len; then zeroes.
REGION_HEADER = struct.Struct("<IHHIIQQQII16x")
#: key, deadline_ns, offset, len, work, flags.
TASK = struct.Struct("<QQIIII")

assert REGION_HEADER.size == HEADER_LEN and TASK.size == TASK_LEN and PACKET.size == 8 and BATCH_BODY.size == 40
assert BATCH_PACKET.size == PACKET.size + BATCH_BODY.size and DONE_PACKET.size == PACKET.size + DONE_BODY.size

if sys.byteorder != "little" or array("I").itemsize != 4:
    raise ImportError("ramjet: the agent port needs a little-endian machine with 32-bit C integers")


class BatchPacket(NamedTuple):
    """The body of BATCH."""

    batch: int
    region: int
    n: int
    earliest_deadline_ns: int
    work: int
    result_offset: int
    result_len: int


def packet(kind: int, epoch: int, body: bytes = b"") -> bytes:
    """One packet of the socket."""
    return PACKET.pack(kind, ABI, epoch) + body


def parse_packet(data: bytes) -> tuple[int, int, bytes]:
    """Takes a packet apart: kind, epoch, body.

    Raises:
        ProtocolError: it is shorter than its header, or of another ABI.
    """
    if len(data) < PACKET.size:
        raise ProtocolError(f"a packet of {len(data)} bytes, at least {PACKET.size}")
    kind, abi, epoch = PACKET.unpack_from(data)
    if abi != ABI:
        raise ProtocolError(f"a packet of ABI {abi}, this package speaks {ABI}; update the older side")
    return kind, epoch, data[PACKET.size :]


def parse_batch(body: bytes) -> BatchPacket:
    """Reads the body of BATCH.

    Raises:
        ProtocolError: it has another length.
    """
    if len(body) != BATCH_BODY.size:
        raise ProtocolError(f"a BATCH of {len(body)} bytes, must be {BATCH_BODY.size}")
    return BatchPacket(*BATCH_BODY.unpack(body))


def reason_bytes(reason: str, limit: int = REASON_LEN_MAX) -> bytes:
    """A reason in UTF-8 of at most `limit` bytes, cut between characters."""
    encoded = reason.encode("utf-8", "replace")
    if len(encoded) <= limit:
        return encoded
    return encoded[:limit].decode("utf-8", "ignore").encode()


def payload_offset(n: int) -> int:
    """Where the payloads of a batch of n tasks begin."""
    return HEADER_LEN + n * (TASK_LEN + ANSWER_LEN)


def room_needed(lens: Sequence[int], result_len_max: int) -> int:
    """Bytes that a region must have for a batch of payloads of these lengths."""
    payloads = sum((length + 7) & ~7 for length in lens)
    return ((payload_offset(len(lens)) + payloads + 63) & ~63) + len(lens) * result_len_max


class Described(NamedTuple):
    """A batch that was written into a region."""

    packet: BatchPacket
    offsets: list[int]


def write_batch(
    region: memoryview,
    number: int,
    epoch: int,
    batch: int,
    payloads: Sequence[bytes],
    result_len_max: int,
    deadlines_ns: Sequence[int] | None = None,
    work: Sequence[int] | None = None,
) -> Described:
    """Lays a batch out in a region, as the node does.

    Raises:
        ValueError: the region has no room for it.
    """
    n = len(payloads)
    lens = [len(payload) for payload in payloads]
    needed = room_needed(lens, result_len_max)
    if needed > len(region):
        raise ValueError(f"a batch of {needed} bytes, the region has {len(region)}")
    deadlines_ns = deadlines_ns or [0] * n
    work = work or [1] * n
    offsets = list(accumulate(((length + 7) & ~7 for length in lens), initial=payload_offset(n)))
    result_offset = (offsets.pop() + 63) & ~63
    earliest = min((deadline for deadline in deadlines_ns if deadline), default=0)
    told = BatchPacket(batch, number, n, earliest, sum(work), result_offset, n * result_len_max)
    REGION_HEADER.pack_into(
        region, 0, MAGIC, ABI, HEADER_LEN, epoch, n, batch, earliest, told.work, result_offset, told.result_len
    )
    for i, (offset, length) in enumerate(zip(offsets, lens)):
        TASK.pack_into(region, HEADER_LEN + i * TASK_LEN, i, deadlines_ns[i], offset, length, work[i], 0)
        region[offset : offset + length] = payloads[i]
    table = HEADER_LEN + n * TASK_LEN
    region[table : table + n * ANSWER_LEN] = bytes(n * ANSWER_LEN)
    return Described(told, offsets)


class Answer(NamedTuple):
    """One entry of the answer table with its bytes."""

    status: int
    bytes: bytes


def read_answers(region: memoryview, told: BatchPacket) -> list[Answer]:
    """Reads the answer table of a batch, as the node does.

    Raises:
        ProtocolError: an entry lies outside the results area.
    """
    table = HEADER_LEN + told.n * TASK_LEN
    end = told.result_offset + told.result_len
    answers = []
    for status, offset, length, _ in struct.iter_unpack("<IIII", region[table : table + told.n * ANSWER_LEN]):
        if length and not told.result_offset <= offset <= offset + length <= end:
            raise ProtocolError(
                f"an answer at [{offset}, {offset + length}), results lie in [{told.result_offset}, {end})"
            )
        answers.append(Answer(status, bytes(region[offset : offset + length])))
    return answers
