"""Two Pilot daemons of one version, brought together by `ramjet registry`."""

import json

from cases import GO_TO_GO
from harness.basics import SETTLE_LIMIT_S, expect, until
from harness.install import TASK_VERSION


def rows(world, directions):
    if GO_TO_GO not in directions:
        return
    registered = []

    def both(case):
        def run():
            expect(len(registered) == 2, "a daemon has not registered")
            return case(world.registry, *registered)
        return run

    for letter in "ab":
        yield GO_TO_GO, f"{letter} registers", lambda letter=letter: registers(world, letter, registered)
    yield GO_TO_GO, "set-hostname, find", both(find)
    yield GO_TO_GO, "ping by address", both(lambda _, one, other: ping(one, other, other.address))
    yield GO_TO_GO, "ping by name", both(lambda _, one, other: ping(one, other, other.name))
    yield GO_TO_GO, "message is delivered", both(message)
    yield GO_TO_GO, "handshake, approve, trust", both(handshake)
    if world.version == TASK_VERSION:
        yield GO_TO_GO, "enable-tasks", both(lambda registry, one, _: tasks(registry, one))
        yield GO_TO_GO, "my-polo", both(lambda registry, one, _: polo(registry, one))


def registers(world, letter, registered):
    daemon = world.go(letter)
    info = daemon.control("info")
    known = world.registry.ask(type="lookup", node_id=daemon.node)
    expect(known.get("address") == daemon.address, f"lookup says {known}, the daemon {daemon.address}")
    key = info["public_key"]
    expect(known.get("public_key") == key, f"lookup has key {known.get('public_key')}, the daemon {key}")
    expect(known.get("public") is True, f"the node asked to be public, lookup says {known.get('public')}")
    expect(all(held.node != daemon.node for held in registered), f"node {daemon.node} is another one's number")
    registered.append(daemon)
    return f"node {daemon.node}, {daemon.address}"


def find(registry, first, second):
    second.control("set-hostname", second.name)
    found = first.control("find", second.name)
    expect(found.get("address") == second.address, f"find says {found}, expected {second.address}")
    told = registry.ask(type="resolve_hostname", hostname=second.name)
    expect(told.get("node_id") == second.node, f"resolve_hostname says {told}, expected node {second.node}")
    return f"{second.name} is {found['address']}"


def ping(first, second, target, count=3):
    """Pings through the echo of another peer, over a tunnel that is encrypted."""
    reply = first.control("ping", target, "--count", str(count))
    answered = [result for result in reply.get("results", []) if "rtt_ms" in result and not result.get("error")]
    expect(len(answered) == count, f"{count} pings to {target}, answers: {reply}")
    first.tunnel(second, "encrypted")
    return f"{min(result['rtt_ms'] for result in answered):.1f} ms, encrypted"


def message(_registry, first, second):
    text = f"bonjour from {first.name}"
    first.control("send-message", second.address, "--data", text)

    def arrived():
        return text in json.dumps(second.control("inbox")) or None

    until(f"{second.name} receives {text!r}", SETTLE_LIMIT_S, arrived)
    return f"{len(text)} bytes in the inbox"


def handshake(registry, first, second):
    first.control("handshake", str(second.node), "work together")
    pending = until("the request arrives", SETTLE_LIMIT_S, lambda: second.control("pending").get("pending"))
    expect(pending[0]["node_id"] == first.node, f"pending says {pending}, expected node {first.node}")
    second.control("approve", str(first.node))
    for one, other in ((first, second), (second, first)):
        until(f"{one.name} trusts node {other.node}", SETTLE_LIMIT_S,
              lambda one=one, other=other: other.node in trusted(one))
    until("the registry knows the pair", SETTLE_LIMIT_S, lambda: registry.ask(
        type="check_trust", node_id=first.node, peer_id=second.node).get("trusted"))
    return "mutual, known to the registry"


def trusted(peer):
    return [held["node_id"] for held in peer.control("trust").get("trusted") or []]


def tasks(registry, daemon):
    daemon.control("extras", "enable-tasks")
    known = registry.ask(type="lookup", node_id=daemon.node)
    expect(known.get("task_exec") is True, f"lookup says {known}")
    return "task_exec is true"


def polo(registry, daemon):
    shown = daemon.control("extras", "my-polo").get("polo_score")
    expect(isinstance(shown, int), f"my-polo shows {shown!r}")
    told = registry.ask(type="get_polo_score", node_id=daemon.node, caller_node_id=daemon.node).get("polo_score")
    expect(told in (None, shown), f"my-polo shows {shown}, the registry says {told}")
    return f"polo {shown}"
