"""The local socket: Pilot's command line and Python SDK at a ramjet node, against the same at a Pilot daemon.

Each command runs twice: at a daemon, and at a node, both towards the same kind of peer. It must end alike, and what the
daemon answered with must be there, of the same kinds; what a node answers beyond that is counted. A daemon of 1.9.1
knows less than the node says, so more is no fault.
"""

import json
import os
import subprocess
import sys
import threading
import time

from harness.basics import CALL_LIMIT_S, SETTLE_LIMIT_S, Failed, expect, until
from harness.install import TASK_VERSION, binaries, package

DIRECTION = "same"
NEWEST = "1.18.0"
PORT = 5_001
NOBODY = 4_242
LISTEN_FOR = "10s"
# Programs that wait for something have it before they give up, and after they are ready.
READY_S = 1.0
# A daemon that says nothing is asked again: Pilot's own `bench` between two daemons of 1.9.1 never ends in one of six
# runs on a loaded machine (11 of 60, with a node in the daemon's place 0 of 60). A node is asked once.
DAEMON_TRIES = 5
DAEMON_LIMIT_S = 15
HASH = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def rows(world, directions):
    held = {}

    def both():
        """The daemon, the node, and the daemon that both speak with; each is started once."""
        if not held:
            held["other"] = world.go("d2")
            held["other"].control("set-hostname", "driver-other")
            held["pair"] = (world.go("d"), world.ramjet_node("d"))
        return *held["pair"], held["other"]

    for title, words in talking():
        yield DIRECTION, f"pilotctl {title}"[:38], lambda words=words: same(*both(), words)
    yield DIRECTION, "pilotctl recv", lambda: same_received(*both())
    if world.version == NEWEST:
        yield DIRECTION, "pilotctl listen", lambda: same_listened(*both())
    for title, words in ruling(world.version):
        yield DIRECTION, f"pilotctl {title}"[:38], lambda words=words: same(*both(), words)
    yield DIRECTION, "pilotctl handshake, reject, approve", lambda: same_trust(world, *both())
    yield DIRECTION, "Python SDK: Driver", lambda: same_sdk(*both())
    yield DIRECTION, "pilotctl deregister", lambda: same(*both(), lambda one, other: ["deregister"])


def plain(*words):
    """A command that says the same wherever it is run."""
    return " ".join(words), lambda one, other: list(words)


def talking():
    """Title and words of each command by which nodes speak, later ones with something to show."""
    yield plain("info")
    yield plain("health")
    yield plain("peers")
    yield plain("connections")
    yield "set-hostname", lambda one, other: ["set-hostname", one.name]
    yield "find (itself)", lambda one, other: ["find", one.name]
    yield plain("find", "driver-other")
    yield plain("find", "nobody-at-all")
    yield plain("set-hostname", "Not_A_Name")
    yield plain("ping", "driver-other", "--count", "2")
    yield "ping (address)", lambda one, other: ["ping", other.address, "--count", "1"]
    yield "connections (some), info", lambda one, other: ["info"]
    yield plain("connections")
    yield "peers (some)", lambda one, other: ["peers"]
    yield plain("bench", "driver-other", "1")
    yield plain("connect", "driver-other", "7", "--message", "hi")
    yield plain("send", "driver-other", "7", "--data", "yo")
    yield plain("send", "driver-other", "5999", "--data", "refused")
    yield "traceroute", lambda one, other: ["traceroute", other.address]
    yield plain("dgram", "driver-other", "4321", "--data", "dg")
    yield plain("send-message", "driver-other", "--data", "hello")
    yield plain("send-message", "driver-other", "--data", '{"a":1}', "--type", "json")
    yield "send-file", lambda one, other: ["send-file", "driver-other", file_of(one)]
    yield plain("publish", "driver-other", "topic", "--data", "m")
    yield plain("subscribe", "driver-other", "topic", "--count", "1", "--timeout", "1s")
    yield plain("disconnect", "4242")


def ruling(version):
    """Title and words of each command that says what a node is, and whom it trusts."""
    yield plain("extras", "set-tags", "one", "two")
    yield plain("extras", "set-tags", "Bad Tag")
    yield plain("extras", "clear-tags")
    yield plain("set-private")
    yield plain("set-public")
    yield plain("trust")
    yield plain("pending")
    yield plain("untrust", str(NOBODY))
    yield plain("handshake", str(NOBODY))
    yield "lookup", lambda one, other: ["lookup", str(other.node)]
    yield plain("extras", "network", "list")
    yield plain("extras", "network", "members", "1")
    yield plain("extras", "network", "join", "1")
    yield plain("extras", "network", "invites")
    yield plain("extras", "managed", "status", "1")
    yield plain("extras", "policy", "get", "--net", "1")
    yield plain("extras", "clear-webhook")
    yield plain("clear-hostname")
    if version == NEWEST:
        yield "prefer-direct", lambda one, other: ["prefer-direct", str(other.node)]
        yield plain("sign-request", "--audience", "shop.example", "--body-hash", HASH)
        yield "verify-request", lambda one, other: ["verify-request", *signed_by(other), "--standing"]
    if version == TASK_VERSION:
        yield plain("extras", "enable-tasks")
        yield plain("extras", "disable-tasks")
        yield plain("extras", "my-polo")


def file_of(one):
    path = one.home / "driver-file.txt"
    path.write_text("x" * 1_000)
    return str(path)


def signed_by(other):
    signed = other.control("sign-request", "--audience", "shop.example", "--body-hash", HASH)
    return ["--envelope", signed["envelope"], "--signature", signed["signature"]]


# Comparing what was answered.


class Endless(Failed):
    """A command did not end within its limit."""


def pilotctl(peer, words, limit_s=CALL_LIMIT_S):
    """Runs pilotctl at a peer; its exit code and the JSON that it printed on either output."""
    command = [binaries(peer.version) / "pilotctl", "--json", *words]
    try:
        done = subprocess.run(command, env=peer.environment, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        raise Endless(f"{peer.name}: pilotctl {' '.join(words)}: no end within {limit_s} s")
    try:
        return done.returncode, json.loads(done.stdout.strip() or done.stderr.strip())
    except ValueError:
        raise Failed(f"{peer.name}: pilotctl {' '.join(words)}: {done.stdout} {done.stderr}".strip())


def same(daemon, node, other, words):
    """One command at both, and the comparison of what they said."""
    expected, tries = from_daemon(daemon, words(daemon, other))
    found = pilotctl(node, words(node, other))
    return compare(expected, found) + (f" (the daemon answered at try {tries})" if tries > 1 else "")


def from_daemon(daemon, words):
    """What a daemon answers, and at which try: one that never answers is no measure for a node."""
    for tries in range(1, DAEMON_TRIES + 1):
        try:
            return pilotctl(daemon, words, DAEMON_LIMIT_S), tries
        except Endless:
            if tries == DAEMON_TRIES:
                raise


def compare(expected, found):
    (daemon_code, daemon_said), (node_code, node_said) = expected, found
    if daemon_code != node_code:
        raise Failed(f"exit {node_code}, the daemon's {daemon_code}: {said(node_said)}, the daemon: {said(daemon_said)}")
    lacks, more, count = [], [], []
    match(daemon_said, node_said, "", lacks, more, count)
    if daemon_code:
        # A failure's kind is what programs act on; its words may say more.
        expect(daemon_said.get("code") == node_said.get("code"),
               f"code {node_said.get('code')}, the daemon's {daemon_said.get('code')}: {said(node_said)}")
    expect(not lacks, f"{', '.join(lacks)}; the daemon said {said(daemon_said)}")
    beyond = f", beyond: {' '.join(more)}" if more else ""
    return (said(node_said)[:70] if daemon_code else f"{len(count)} members{beyond}")


def said(reply):
    return str(reply.get("message") or json.dumps(reply))[:300]


def kind(value):
    """What a program can do with a value: numbers are one kind, as they are in JSON."""
    if isinstance(value, bool):
        return "flag"
    return "number" if isinstance(value, (int, float)) else type(value).__name__


def match(expected, found, path, lacks, more, count):
    """Collects the members of one that the other lacks, or has as another kind."""
    if expected is None or expected == []:
        return
    if kind(expected) != kind(found):
        # A list that is empty here and absent there is what the two had to show, not how they show it.
        if not (found is None and isinstance(expected, list)):
            lacks.append(f"{path or 'the reply'} is {kind(found)}, not {kind(expected)}")
    elif isinstance(expected, dict):
        for name, value in expected.items():
            count.append(name)
            if name not in found:
                lacks.append(f"{path}.{name} is missing")
            else:
                match(value, found[name], f"{path}.{name}", lacks, more, count)
        more += [name for name in found if name not in expected]
    elif isinstance(expected, list) and found:
        match(expected[0], found[0], f"{path}[]", lacks, more, count)


# Commands that need somebody else to do something meanwhile.


def meanwhile(peer, words, act):
    """A command that waits, and what brings about what it waits for."""
    outcome = []
    thread = threading.Thread(target=lambda: outcome.append(pilotctl(peer, words)), daemon=True)
    thread.start()
    time.sleep(READY_S)
    act()
    thread.join(CALL_LIMIT_S)
    if not outcome:
        raise Failed(f"{peer.name}: pilotctl {' '.join(words)} did not end")
    return outcome[0]


def same_received(daemon, node, other):
    answers = []
    for peer in (daemon, node):
        words = ["recv", str(PORT), "--count", "1", "--timeout", LISTEN_FOR]
        answers.append(meanwhile(peer, words, lambda peer=peer: pilotctl(
            other, ["send", peer.address, str(PORT), "--data", "to-recv"])))
        messages = answers[-1][1].get("data", {}).get("messages") or []
        expect([held.get("data") for held in messages] == ["to-recv"], f"{peer.name} received {answers[-1]}")
    return compare(*answers)


def same_listened(daemon, node, other):
    answers = []
    for peer in (daemon, node):
        words = ["listen", str(PORT), "--count", "1", "--timeout", LISTEN_FOR]
        answers.append(meanwhile(peer, words, lambda peer=peer: pilotctl(
            other, ["dgram", peer.address, str(PORT), "--data", "to-listen"])))
        messages = answers[-1][1].get("data", {}).get("messages") or []
        expect([held.get("data") for held in messages] == ["to-listen"], f"{peer.name} heard {answers[-1]}")
    return compare(*answers)


def same_trust(world, daemon, node, other):
    """Asked for at the peer under test and at others: rejected, approved by either, taken back."""
    another = world.go("d3")
    stories = [trust_story(peer, other, another) for peer in (daemon, node)]
    for expected, found in zip(*stories):
        compare(expected, found)
    return f"{len(stories[0])} answers alike"


def trust_story(peer, other, another):
    story = []

    def at(*words):
        story.append(pilotctl(peer, words))
        expect(story[-1][0] == 0, f"{peer.name}: {' '.join(words)}: {story[-1][1]}")

    def asked(of, by):
        rows = pilotctl(of, ["pending"])[1].get("data", {}).get("pending") or []
        return any(row["node_id"] == by.node for row in rows)

    def trusts(one, another):
        rows = pilotctl(one, ["trust"])[1].get("data", {}).get("trusted") or []
        return any(row["node_id"] == another.node for row in rows)

    other.control("handshake", str(peer.node), "no, thanks")
    until("the other asks", SETTLE_LIMIT_S, lambda: asked(peer, other))
    at("pending")
    at("reject", str(other.node), "not today")
    until("it is rejected", SETTLE_LIMIT_S, lambda: not asked(peer, other))
    at("handshake", str(other.node), "work together")
    until("the request arrives", SETTLE_LIMIT_S, lambda: asked(other, peer))
    other.control("approve", str(peer.node))
    until("both trust", SETTLE_LIMIT_S, lambda: trusts(peer, other) and trusts(other, peer))
    at("trust")
    at("untrust", str(other.node))
    until("none trusts", SETTLE_LIMIT_S, lambda: not trusts(peer, other) and not trusts(other, peer))
    another.control("handshake", str(peer.node), "please")
    until("another asks", SETTLE_LIMIT_S, lambda: asked(peer, another))
    at("approve", str(another.node))
    until("both trust", SETTLE_LIMIT_S, lambda: trusts(peer, another) and trusts(another, peer))
    another.control("untrust", str(peer.node))
    until("trust is taken back", SETTLE_LIMIT_S, lambda: not trusts(peer, another))
    return story


# The Python SDK, in a process of its own: the library that it loads starts threads that never end.


def same_sdk(daemon, node, other):
    told = [sdk(peer, other) for peer in (daemon, node)]
    lacks, more, count = [], [], []
    match(told[0], told[1], "", lacks, more, count)
    expect(not lacks, ", ".join(lacks))
    return f"{len(told[0])} calls, {len(count)} members" + (f", beyond: {' '.join(more)}" if more else "")


def sdk(peer, other):
    environment = {**peer.environment, "PYTHONPATH": str(package(peer.version)),
                   "PILOT_LIB_PATH": str(binaries(peer.version) / "libpilot.so")}
    wanted = json.dumps({"socket": peer.socket, "node": other.node, "address": other.address, "name": peer.name,
                         "own": peer.address, "version": peer.version, "file": file_of(peer)})
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sdk_calls.py")
    # Bytecode would be written into the packages' folder.
    command = [sys.executable, "-B", script, wanted]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=CALL_LIMIT_S)
    except subprocess.TimeoutExpired as late:
        raise Failed(f"{peer.name}: the SDK came no further within {CALL_LIMIT_S} s than {late.stdout!r}")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    expect(done.returncode == 0, f"{peer.name}: after {lines[-1:]}: {done.stderr[-600:]}")
    return {line["call"]: line["answer"] for line in lines}
