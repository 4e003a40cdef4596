"""The tunnel between a Pilot daemon and a ramjet node, either of them first; and when either is started anew."""

from cases import BOTH_WAYS
from cases.daemons import ping
from harness.basics import expect, until

# A daemon that dials a peer that is gone waits up to 17 s for it; then comes the next attempt.
RECOVER_LIMIT_S = 60


def rows(world, directions):
    for direction in (way for way in BOTH_WAYS if way in directions):
        yield direction, "key exchange, authenticated", lambda way=direction: exchange(*world.pair(way))
        yield direction, "ping by address", lambda way=direction: by_address(*world.pair(way))
        yield direction, "ping by name", lambda way=direction: by_name(*world.pair(way))


def restart_rows(world, directions):
    """These end what others may be talking to, so they come last."""
    for direction in (way for way in BOTH_WAYS if way in directions):
        yield direction, "the other one restarts, is pinged", lambda way=direction: other_restarts(*world.pair(way))
        yield direction, "the first one restarts, pings", lambda way=direction: first_restarts(*world.pair(way))


def exchange(one, other):
    """Keys are exchanged at the first word, and both ends have verified whose they are."""
    expect(not one.peer(other), f"{one.name} has a tunnel to {other.name} before it spoke")
    ping(one, other, other.address, count=1)
    for here, there in ((one, other), (other, one)):
        here.tunnel(there, "encrypted", "authenticated")
    known = one.registry.ask(type="lookup", node_id=other.node)
    expect(known.get("public_key") == other.public_key(), f"the registry knows node {other.node} as {known}")
    return f"node {one.node} and node {other.node}, each by the key the registry knows"


def by_address(one, other):
    return ping(one, other, other.address)


def by_name(one, other):
    other.control("set-hostname", other.name)
    return ping(one, other, other.name)


def other_restarts(one, other):
    """A process forgets its keys; its peer notices by itself."""
    ping(one, other, other.address, count=1)
    other.stop()
    other.start()
    return recovers(one, other)


def first_restarts(one, other):
    ping(one, other, other.address, count=1)
    one.stop()
    one.start()
    return recovers(one, other)


def recovers(one, other):
    def registered():
        return one.control("info").get("node_id") == one.node and other.control("info").get("node_id") == other.node

    until("both have their numbers again", RECOVER_LIMIT_S, registered)
    tries = []

    def attempt():
        tries.append(1)
        return ping(one, other, other.address, count=1)

    detail = until("a ping after the restart", RECOVER_LIMIT_S, attempt)
    for here, there in ((one, other), (other, one)):
        here.tunnel(there, "authenticated")
    return f"new session, {detail}" + (f", try {len(tries)}" if len(tries) > 1 else "")
