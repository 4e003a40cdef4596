"""Peers that are private, that only the beacon reaches, that meet over a bad network; and a registry that restarts."""

import hashlib
import time

from cases import BOTH_WAYS, EVERY_WAY, GO_TO_GO
from cases.daemons import ping
from harness.basics import Failed, expect, until
from harness.ipc import Driver
from harness.weather import ROUGH

# A private daemon finds what waits for it at the registry by its own poll, once a minute.
POLL_LIMIT_S = 75
RELAY_LIMIT_S = 60
# A daemon of 1.9.1 mends one lost segment for each time-out.
ROUGH_LENGTH = 1 << 20
ROUGH_LIMIT_S = 120
ALONE_LENGTH = 16 << 10


def private_rows(world, directions):
    for direction in (way for way in BOTH_WAYS if way in directions):
        yield direction, "private peers keep strangers out", lambda way=direction: strangers(*privately(world, way))
        yield direction, "trust asked for through the registry", lambda way=direction: trust(*privately(world, way))
        yield direction, "private peers in trust ping", lambda way=direction: in_trust(*privately(world, way))


def privately(world, direction):
    return world.pair(direction, letter="p" if direction.startswith("Go") else "q", public=False)


def relay_rows(world, directions):
    for direction in (way for way in EVERY_WAY if way in directions):
        yield direction, "relay through the beacon", lambda way=direction: relayed(*world.walled_off(
            way, letter="".join(word[0] for word in way.split(" > ")).lower()))


def rough_rows(world, directions):
    for direction in (way for way in BOTH_WAYS if way in directions):
        held = []

        def peers(way=direction, held=held):
            if not held:
                held.append(world.through_weather(way, letter=way[0].lower()))
            return held[0]

        yield direction, "ping at 5 % loss", lambda peers=peers: rough_ping(*peers())
        yield direction, "echo at 5 % loss, reordered, doubled", lambda peers=peers: rough_echo(*peers())


def registry_rows(world, directions):
    if GO_TO_GO in directions:
        yield GO_TO_GO, "registry restarts, daemons go on", lambda: registry_restarts(world, *world.pair(GO_TO_GO))
    for direction in (way for way in BOTH_WAYS if way in directions):
        yield direction, "registry restarts, peers go on", lambda way=direction: registry_restarts(
            world, *world.pair(way))


def strangers(one, other):
    """No ping gets through to a private peer that trusts nobody, nor does the registry say where it is."""
    known = one.registry.ask(type="lookup", node_id=other.node)
    expect(known.get("public") is False and "real_addr" not in known, f"the registry tells everybody {known}")
    try:
        ping(one, other, other.address, count=1)
    except Failed as refused:
        return " ".join(str(refused).split())[:100]
    raise Failed("the ping was answered")


def trust(one, other):
    """The handshake cannot be dialled: it waits at the registry until the other one asks there."""
    began = time.monotonic()
    one.control("handshake", str(other.node), "work together")
    until("the request arrives", POLL_LIMIT_S,
          lambda: any(held["node_id"] == one.node for held in other.control("pending").get("pending") or []))
    arrived = time.monotonic() - began
    other.control("approve", str(one.node))
    until("the registry knows the pair", POLL_LIMIT_S, lambda: one.registry.ask(
        type="check_trust", node_id=other.node, peer_id=one.node).get("trusted"))
    return f"the request arrived after {arrived:.1f} s"


def in_trust(one, other):
    return until("a ping in trust", POLL_LIMIT_S, lambda: ping(one, other, other.address, count=1), pause_s=1)


def relayed(one, other, walls):
    """Each registered an address where nobody listens, and hears nobody but its beacon."""
    detail = until("a ping over the beacon", RELAY_LIMIT_S, lambda: ping(one, other, other.address, count=1))
    refused = [wall.refused for wall in walls]
    for _ in range(2):
        detail = ping(one, other, other.address)
    passed = [wall.passed for wall in walls]
    expect(all(count >= 8 for count in passed), f"{passed} datagrams came over the beacon")
    return f"{detail}, {sum(passed)} datagrams by the beacon, {sum(refused)} direct ones refused"


def rough_ping(one, other, relay):
    relay.weather = ROUGH
    detail = until("a ping", RELAY_LIMIT_S, lambda: ping(one, other, other.address))
    return f"{detail}, {counts(relay)}"


def rough_echo(one, other, relay):
    relay.weather = ROUGH
    before = dict(relay.counts)
    with Driver(one.socket) as driver:
        took_s = driver.echo(other.node, ROUGH_LENGTH, hashlib.sha256, ROUGH_LIMIT_S)
    expect(relay.counts["lost"] > before["lost"], f"nothing was lost: {counts(relay)}")
    return f"{ROUGH_LENGTH >> 20} MiB in {took_s:.1f} s, SHA-256 equal, {counts(relay)}"


def counts(relay):
    return ", ".join(f"{count} {name}" for name, count in relay.counts.items() if name != "strange")


def registry_restarts(world, one, other):
    """Tunnels outlive the registry; names and settings are in its log; whoever asks it again is answered."""
    ping(one, other, other.address, count=1)
    other.control("set-hostname", other.name)
    with Driver(one.socket) as driver:
        world.registry.stop()
        try:
            # Pilot's command line asks the registry before it pings; the daemon does not.
            driver.echo(other.node, ALONE_LENGTH, hashlib.sha256, limit_s=30)
        finally:
            world.registry.start()
    known = world.registry.ask(type="resolve_hostname", hostname=other.name)
    expect(known.get("node_id") == other.node, f"the registry knows {other.name} as {known}")

    def asked_again():
        found = one.control("find", other.name)
        return found.get("address") == other.address

    until("the registry is asked again", POLL_LIMIT_S, asked_again, pause_s=1)
    until("the registry is told again", POLL_LIMIT_S,
          lambda: other.control("set-hostname", f"{other.name}-2"), pause_s=1)
    return ping(one, other, f"{other.name}-2", count=1)


