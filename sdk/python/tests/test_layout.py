"""The agent port byte for byte, against vectors written out by hand from the tables of `docs/WIRE.md`."""

from __future__ import annotations

import struct

import pytest

import ramjet
from ramjet import _layout as layout


def hexed(text: str) -> bytes:
    return bytes.fromhex("".join(text.split()))


PACKETS = [
    (layout.READY, 5, b"", "0400 0100 05000000"),
    (layout.BYE, 5, b"", "0a00 0100 05000000"),
    (
        layout.BATCH,
        0xA1B2C3D4,
        layout.BATCH_BODY.pack(0x0102030405060708, 1, 3, 0x1122334455667788, 4, 0x200, 0x300),
        "0500 0100 d4c3b2a1  0807060504030201 01000000 03000000 8877665544332211 0400000000000000 00020000 00030000",
    ),
    (
        layout.DONE, 1, layout.DONE_BODY.pack(2, 3),
        "0600 0100 01000000  0200000000000000 0300000000000000",
    ),
    (layout.FAILED, 1, layout.BATCH_ID.pack(2) + b"why", "0700 0100 01000000  0200000000000000 776879"),
    (
        layout.PROGRESS, 1, layout.PROGRESS_BODY.pack(2, 3, 0) + b"half",
        "0800 0100 01000000  0200000000000000 03000000 00000000 68616c66",
    ),
    (layout.ALIVE, 1, layout.BATCH_ID.pack(2), "0b00 0100 01000000  0200000000000000"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "epoch", "body", "expected"), PACKETS)
def test_packets_have_the_published_bytes(kind: int, epoch: int, body: bytes, expected: str) -> None:
    assert layout.packet(kind, epoch, body) == hexed(expected)
    assert layout.parse_packet(hexed(expected)) == (kind, epoch, body)


#: Two tasks, "abc" with a deadline and 9 bytes without, results of at most 32 bytes.
REGION = hexed(
    """
    314d524a 0100 4000 05000000 02000000 0700000000000000 40420f0000000000 0200000000000000 c0000000 40000000
    0000000000000000 0000000000000000

    0000000000000000 40420f0000000000 a0000000 03000000 01000000 00000000
    0100000000000000 0000000000000000 a8000000 09000000 01000000 00000000

    00000000 00000000 00000000 00000000
    00000000 00000000 00000000 00000000

    6162630000000000
    303132333435363738 00000000000000
    """
)


def test_a_region_has_the_published_bytes() -> None:
    region = memoryview(bytearray(512))
    told, offsets = layout.write_batch(region, 1, 5, 7, [b"abc", b"012345678"], 32, [1_000_000, 0])
    assert bytes(region[: len(REGION)]) == REGION
    assert not any(region[len(REGION) :])
    assert told == layout.BatchPacket(7, 1, 2, 1_000_000, 2, 0xC0, 0x40)
    assert offsets == [0xA0, 0xA8]


def test_answers_have_the_published_bytes() -> None:
    region = memoryview(bytearray(512))
    told, _ = layout.write_batch(region, 0, 5, 7, [b"abc", b"012345678"], 32)
    region[0x80:0xA0] = hexed("01000000 c0000000 02000000 00000000  02000000 c2000000 03000000 00000000")
    region[0xC0:0xC5] = b"okwhy"
    assert layout.read_answers(region, told) == [(layout.ANSWER_DONE, b"ok"), (layout.ANSWER_FAILED, b"why")]
    for outside in ("bf000000 02000000", "ff000000 02000000", "c0000000 41000000", "ffffffff ffffffff"):
        region[0x84:0x8C] = hexed(outside)
        with pytest.raises(ramjet.ProtocolError, match="an answer at"):
            layout.read_answers(region, told)


def test_a_region_without_room_is_refused() -> None:
    needed = layout.room_needed([3, 9], 32)
    assert needed == 0x100
    layout.write_batch(memoryview(bytearray(needed)), 0, 1, 1, [b"abc", b"012345678"], 32)
    with pytest.raises(ValueError, match="a batch of 256 bytes, the region has 255"):
        layout.write_batch(memoryview(bytearray(needed - 1)), 0, 1, 1, [b"abc", b"012345678"], 32)


@pytest.mark.parametrize("length", range(8))
def test_what_is_no_packet_is_refused(length: int) -> None:
    with pytest.raises(ramjet.ProtocolError, match=f"a packet of {length} bytes"):
        layout.parse_packet(bytes(length))


def test_another_abi_and_another_length_are_refused() -> None:
    with pytest.raises(ramjet.ProtocolError, match="ABI 2"):
        layout.parse_packet(struct.pack("<HHI", 5, 2, 1))
    for length in (0, 39, 41):
        with pytest.raises(ramjet.ProtocolError, match=f"a BATCH of {length} bytes, must be 40"):
            layout.parse_batch(bytes(length))


def test_reasons_are_cut_between_characters() -> None:
    assert layout.reason_bytes("ä" * 600) == "ä".encode() * 512
    assert layout.reason_bytes("ä" * 600, 5) == "ää".encode()
    assert layout.reason_bytes("\ud800") == b"?"
