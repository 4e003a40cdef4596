"""Streams and datagrams, over the local socket of either end."""

import hashlib
import os

from cases import BOTH_WAYS
from harness.basics import Failed, expect
from harness.ipc import Driver

LENGTH = 64 << 20
ECHO_LIMIT_S = 150
PORT = 4_242
DATAGRAMS = 20
DATAGRAM_LIMIT_S = 3


def rows(world, directions):
    for direction in (way for way in BOTH_WAYS if way in directions):
        yield direction, "64 MiB through echo", lambda way=direction: echo(*world.pair(way))
        yield direction, "datagrams", lambda way=direction: datagrams(*world.pair(way))


def echo(one, other):
    with Driver(one.socket) as driver:
        took_s = driver.echo(other.node, LENGTH, hashlib.sha256, ECHO_LIMIT_S)
    return f"SHA-256 equal, {LENGTH / took_s / 1e6:.0f} MB/s there and back"


def datagrams(one, other):
    """Datagrams may be lost, but on loopback few are; none is changed."""
    with Driver(one.socket) as sender, Driver(other.socket) as receiver:
        sent = [bytes([number]) + os.urandom(length) for number, length in
                enumerate([0, 1, 100, 1_000] * (DATAGRAMS // 4))]
        # Whoever has the other end's socket open gets them, bound or not.
        receiver.bind(PORT)
        for data in sent:
            sender.send_to(other.node, PORT, data)
        received = []
        while len(received) < len(sent):
            arrived = receiver.datagram(DATAGRAM_LIMIT_S)
            if arrived is None:
                break
            node, _, port, data = arrived
            expect((node, port) == (one.node, PORT), f"a datagram of node {node} to port {port}")
            expect(data in sent, f"a datagram that nobody sent, of {len(data)} bytes")
            received.append(data)
        if len(received) < len(sent) * 3 // 4:
            raise Failed(f"{len(received)} of {len(sent)} datagrams arrived")
    return f"{len(received)} of {len(sent)} arrived, unchanged"
