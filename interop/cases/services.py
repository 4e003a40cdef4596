"""Data exchange and trust, as Pilot's command line drives them at either end."""

import base64
import hashlib
import json
import os

from cases import BOTH_WAYS
from cases.daemons import trusted
from harness.basics import SETTLE_LIMIT_S, expect, until
from harness.install import TASK_VERSION
from harness.processes import Daemon

FILE_LENGTH = 3 << 20
# A daemon of 1.9.1 never sends a file of 256 KiB that its own command line hands it, whoever is to get it.
OLD_FILE_LENGTH = 60_000


def rows(world, directions):
    for direction in (way for way in BOTH_WAYS if way in directions):
        yield direction, "message: text", lambda way=direction: text(*world.pair(way))
        yield direction, "message: JSON", lambda way=direction: as_json(*world.pair(way))
        yield direction, "message: binary", lambda way=direction: binary(*world.pair(way))
        yield direction, "file", lambda way=direction: file(*world.pair(way))
        yield direction, "trust: asked for, rejected", lambda way=direction: rejected(*world.pair(way))
        yield direction, "trust: asked for, approved", lambda way=direction: approved(*world.pair(way))
        yield direction, "trust: revoked", lambda way=direction: revoked(*world.pair(way))
        yield direction, "trust: both ask, none approves", lambda way=direction: mutual(*world.pair(way))


def text(one, other):
    data = f"bonjour from {one.name}"
    one.control("send-message", other.address, "--data", data)
    arrives(other, one, "TEXT", data.encode())
    return f"{len(data)} bytes in the inbox"


def as_json(one, other):
    data = json.dumps({"from": one.name, "list": [1, 2.5, None, "é"]})
    one.control("send-message", other.address, "--data", data, "--type", "json")
    arrives(other, one, "JSON", data.encode())
    return f"{len(data)} bytes in the inbox"


def binary(one, other):
    data = f"{one.name}: \x01\x02 not text \x7f"
    one.control("send-message", other.address, "--data", data, "--type", "binary")
    arrives(other, one, "BINARY", data.encode())
    return f"{len(data)} bytes in the inbox"


def arrives(receiver, sender, kind, data):
    """The message stands in the receiver's inbox, as Pilot keeps it."""
    folder = receiver.home / ".pilot" / "inbox"

    def kept():
        for path in sorted(folder.glob(f"{kind}-*.json")) if folder.is_dir() else []:
            held = json.loads(path.read_text())
            content = base64.b64decode(held["data_b64"]) if held.get("data_b64") else held["data"].encode()
            if content == data:
                expect(held.get("from") == sender.address, f"{path.name} says it came from {held.get('from')}")
                expect(held.get("type") == kind, f"{path.name} says it is {held.get('type')}")
                return True
        return False

    until(f"{kind} in {receiver.name}'s inbox", SETTLE_LIMIT_S, kept)


def file(one, other):
    path = one.home / f"from-{one.name}-to-{other.node}.bin"
    length = OLD_FILE_LENGTH if one.version == TASK_VERSION else FILE_LENGTH
    path.write_bytes(os.urandom(length))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    one.control("send-file", other.address, str(path))
    folder = other.home / ".pilot" / "received"

    def kept():
        return any(hashlib.sha256(held.read_bytes()).hexdigest() == digest
                   for held in folder.glob(f"{path.stem}*") if held.is_file())

    until(f"the file in {other.name}'s folder", SETTLE_LIMIT_S, kept)
    return f"{length} bytes, SHA-256 equal"


def asks(one, other, why):
    """A request like an earlier one of the same second would pass for its replay: each says another `why`.

    A daemon of 1.18.0 takes any second request of a node for a replay, whatever it says and when ("handshake replay
    detected" in its log), and forgets that when it ends: it is started anew before each but the first."""
    if one.node in other.asked_by and isinstance(other, Daemon) and other.version != TASK_VERSION:
        other.stop()
        other.start()
        until("the daemon is registered again", SETTLE_LIMIT_S,
              lambda: other.control("info").get("node_id") == other.node)
    other.asked_by.add(one.node)
    one.control("handshake", str(other.node), why)
    until("the request arrives", SETTLE_LIMIT_S, lambda: any(
        held["node_id"] == one.node for held in other.control("pending").get("pending") or []))


def rejected(one, other):
    asks(one, other, "for no good reason")
    other.control("reject", str(one.node), "not today")
    until("nothing is pending", SETTLE_LIMIT_S, lambda: not any(
        held["node_id"] == one.node for held in other.control("pending").get("pending") or []))
    expect(other.node not in trusted(one), f"{one.name} trusts node {other.node}")
    expect(one.node not in trusted(other), f"{other.name} trusts node {one.node}")
    return "no trust on either side"


def approved(one, other):
    asks(one, other, "for a better one")
    other.control("approve", str(one.node))
    both_trust(one, other)
    until("the registry knows the pair", SETTLE_LIMIT_S, lambda: all(
        one.registry.ask(type="check_trust", node_id=here, peer_id=there).get("trusted")
        for here, there in ((one.node, other.node), (other.node, one.node))))
    return "mutual, known to the registry"


def both_trust(one, other):
    for here, there in ((one, other), (other, one)):
        until(f"{here.name} trusts node {there.node}", SETTLE_LIMIT_S,
              lambda here=here, there=there: there.node in trusted(here))


def revoked(one, other):
    one.control("untrust", str(other.node))
    for here, there in ((one, other), (other, one)):
        until(f"{here.name} trusts node {there.node} no more", SETTLE_LIMIT_S,
              lambda here=here, there=there: there.node not in trusted(here))
    until("the registry knows no pair", SETTLE_LIMIT_S, lambda: not one.registry.ask(
        type="check_trust", node_id=other.node, peer_id=one.node).get("trusted"))
    return "gone on both sides and at the registry"


def mutual(one, other):
    """Who is asked while it waits for an answer itself needs no approval."""
    asks(one, other, "let us trust each other")
    other.control("handshake", str(one.node), "and I with you")
    both_trust(one, other)
    return "each had asked"
