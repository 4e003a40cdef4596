"""The node's end of the agent port, played by hand: for tests of what a node may send, well or badly."""

from __future__ import annotations

import json
import mmap
import os
import socket
from typing import Any

from ramjet import _layout as layout

EPOCH = 9


class FakeNode:
    """One connection, as the node sees it."""

    def __init__(self, link: socket.socket, regions: int = 2) -> None:
        self.link = link
        self.regions = regions
        self.batches = 0
        link.settimeout(20)

    def take(self) -> tuple[int, int, bytes]:
        """The next packet: kind, epoch, body; kind 0 is the end."""
        data = self.link.recv(layout.PACKET_LEN_MAX)
        return layout.parse_packet(data) if data else (0, 0, b"")

    def hello(self) -> dict[str, Any]:
        kind, epoch, body = self.take()
        assert (kind, epoch) == (layout.HELLO, 0)
        told: dict[str, Any] = json.loads(body)
        self.told = told
        return told

    def welcome(self, **changed: Any) -> None:
        """Makes an arena and sends it; members of WELCOME may be changed."""
        region_len = 1 << 16
        self.region_len = region_len
        length = changed.pop("real_len", self.regions * region_len)
        descriptor = os.memfd_create("fake", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, length)
        self.arena = memoryview(mmap.mmap(descriptor, length))
        members = {
            "node": 7, "name": self.told["skill"], "arena_len": self.regions * region_len, "region_len": region_len,
            "regions": self.regions, "max_batch": self.told["max_batch"],
            "result_len_max": max(self.told["result_len_max"], self.told["result_stride"]), "progress_len_max": 1_310,
            **changed,
        }  # fmt: skip
        packet = layout.packet(layout.WELCOME, EPOCH, json.dumps(members).encode())
        socket.send_fds(self.link, [packet], [descriptor])
        os.close(descriptor)

    def ready(self) -> None:
        assert self.take() == (layout.READY, EPOCH, b"")

    def greet(self) -> None:
        self.hello()
        self.welcome()
        self.ready()

    def region(self, number: int) -> memoryview:
        return self.arena[number * self.region_len : (number + 1) * self.region_len]

    def lay(self, payloads: list[bytes]) -> layout.BatchPacket:
        """Writes a batch into the next region."""
        self.batches += 1
        number = self.batches % self.regions
        told = layout.write_batch(
            self.region(number), number, EPOCH, self.batches, payloads, self.told["result_len_max"]
        )
        return told.packet

    def send(self, kind: int, body: bytes = b"", epoch: int = EPOCH) -> None:
        self.link.send(layout.packet(kind, epoch, body))

    def give(self, payloads: list[bytes]) -> layout.BatchPacket:
        told = self.lay(payloads)
        self.send(layout.BATCH, layout.BATCH_BODY.pack(*told))
        return told

    def done(self, told: layout.BatchPacket) -> list[layout.Answer]:
        kind, epoch, body = self.take()
        assert (kind, epoch) == (layout.DONE, EPOCH), body
        batch, run_ns = layout.DONE_BODY.unpack(body)
        assert batch == told.batch and run_ns > 0
        return layout.read_answers(self.region(told.region), told)


def listen(path: str) -> socket.socket:
    """The node's socket for agents."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.settimeout(20)
    listener.bind(path)
    listener.listen(4)
    return listener
