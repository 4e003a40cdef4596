"""The processes of a run: registry, Pilot daemons, ramjet nodes; and what all of them are started by.

A daemon and a node are both a `Peer`: each has a socket of its own that Pilot's command line speaks to, so a case
that drives one drives the other. Only what was started here is ended, each by its own handle.
"""

import base64
import json
import os
import socket
import struct
import subprocess

from harness.basics import (
    CALL_LIMIT_S, SETTLE_LIMIT_S, START_LIMIT_S, Failed, closed_environment, exactly, expect, first_line, free_port,
    until,
)
from harness.install import binaries

STOP_LIMIT_S = 10


class Started:
    """Processes started here, ended in reverse order."""

    def __init__(self, folder):
        self.folder = folder
        self.processes = []

    def start(self, name, command, environment, capture=False):
        with open(self.folder / f"{name}.log", "ab") as log:
            process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL,
                                       stdout=subprocess.PIPE if capture else log, stderr=log)
        self.processes.append((name, process))
        return process

    def end(self, process):
        """Ends one of them now, as its operator would; true if it took the hint."""
        self.processes = [(name, held) for name, held in self.processes if held is not process]
        return _ended(process)

    def dead(self):
        return [name for name, process in self.processes if process.poll() is not None]

    def stop(self):
        for _, process in reversed(self.processes):
            if process.poll() is None:
                process.terminate()
        for _, process in reversed(self.processes):
            _ended(process)
        self.processes = []


def _ended(process):
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(STOP_LIMIT_S)
        return True
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    finally:
        if process.stdout is not None:
            process.stdout.close()


class Registry:
    """The registry under test: started, and asked directly over its own TCP protocol."""

    def __init__(self, started, ramjet, flags=()):
        self.started, self.ramjet, self.flags = started, ramjet, list(flags)
        # Restarts come back where daemons expect them, so the ports are chosen before.
        self.tcp = f"127.0.0.1:{free_port(socket.SOCK_STREAM)}"
        self.beacon = f"127.0.0.1:{free_port()}"
        self.process = None
        self.start()

    def start(self):
        command = [self.ramjet, "registry", "--listen", self.tcp, "--beacon", self.beacon,
                   "--state", str(self.started.folder / "registry"), "--json", *self.flags]
        environment = closed_environment(self.started.folder)
        self.process = self.started.start("registry", command, environment, capture=True)
        line = first_line(self.process, START_LIMIT_S)
        try:
            ready = json.loads(line)
            told = (ready["listen"], ready["beacon"])
        except (ValueError, KeyError, TypeError):
            raise Failed(f"ramjet registry did not print its addresses; its first line was {line!r}")
        if told != (self.tcp, self.beacon):
            raise Failed(f"ramjet registry listens at {told}, told were {self.tcp} and {self.beacon}")

    def stop(self):
        self.started.end(self.process)

    def ask(self, **message):
        host, port = self.tcp.rsplit(":", 1)
        with socket.create_connection((host, int(port)), CALL_LIMIT_S) as stream:
            body = json.dumps(message).encode()
            stream.sendall(struct.pack(">I", len(body)) + body)
            length = struct.unpack(">I", exactly(stream, 4))[0]
            return json.loads(exactly(stream, length))


class Peer:
    """What takes part in the network and obeys Pilot's command line through a socket of its own."""

    def __init__(self, started, registry, version, name):
        self.started, self.registry, self.version, self.name = started, registry, version, name
        # Unix socket paths are limited to 107 bytes: short names.
        self.home = started.folder / name
        self.home.mkdir()
        self.socket = str(self.home / "ipc")
        self.environment = closed_environment(self.home)
        self.environment.update({
            "PILOT_SOCKET": self.socket, "PILOT_REGISTRY": registry.tcp, "PILOT_BEACON": registry.beacon,
            "PILOT_NO_SKILLINJECT": "1", "PILOT_TELEMETRY_URL": "", "PILOT_MOTD_URL": "",
        })
        self.process = None
        self.node = None
        self.address = None
        # Nodes that have asked it for trust.
        self.asked_by = set()

    def stop(self):
        self.started.end(self.process)

    def control(self, *words, limit_s=CALL_LIMIT_S, version=None):
        """Runs pilotctl; returns its data or raises with what it said."""
        command = [binaries(version or self.version) / "pilotctl", "--json", *words]
        try:
            done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=limit_s)
        except subprocess.TimeoutExpired:
            raise Failed(f"pilotctl {' '.join(words)}: no end within {limit_s} s")
        try:
            reply = json.loads(done.stdout.strip() or done.stderr.strip())
        except ValueError:
            raise Failed(f"pilotctl {' '.join(words)}: exit {done.returncode}, {done.stdout} {done.stderr}".strip())
        if reply.get("status") != "ok":
            raise Failed(f"pilotctl {' '.join(words)}: {reply.get('message', reply)}")
        return reply.get("data", {})

    def peer(self, other):
        """What it says of its tunnel to another one; empty without one."""
        peers = self.control("info").get("peer_list") or []
        return next((peer for peer in peers if peer.get("node_id") == other.node), {})

    def tunnel(self, other, *wanted):
        """Its tunnel to another one, once it is all of `wanted`: what a daemon tells of itself may be seconds old."""
        def told():
            tunnel = self.peer(other)
            lacks = [word for word in wanted if not tunnel.get(word)]
            expect(tunnel and not lacks, f"{self.name} says of its tunnel to node {other.node}: {tunnel}")
            return tunnel

        return until(f"{self.name}'s tunnel to node {other.node}", SETTLE_LIMIT_S, told)

    def log(self):
        """What it has written so far."""
        return (self.started.folder / f"{self.name}.log").read_text(errors="replace")


class Daemon(Peer):
    """One Pilot daemon with a folder, socket and identity of its own."""

    kind = "go"

    def __init__(self, started, registry, version, letter, public=True, endpoint=None, beacon=None, flags=()):
        super().__init__(started, registry, version, f"go-{version.replace('.', '-')}-{letter}")
        program = binaries(version) / "pilot-daemon"
        offered = subprocess.run([program, "--help"], env=self.environment, capture_output=True, text=True,
                                 timeout=CALL_LIMIT_S)
        offered = offered.stdout + offered.stderr
        self.listen = f"127.0.0.1:{free_port()}"
        wanted = ["-registry", registry.tcp, "-beacon", beacon or registry.beacon, "-listen", self.listen,
                  "-socket", self.socket, "-identity", str(self.home / "identity.json"),
                  "-email", f"{self.name}@example.invalid"]
        wanted += ["-public"] if public else []
        if endpoint:
            # A daemon registers no loopback address but its own; the registry puts the address that the daemon
            # comes from in the place of a private one, and leaves the port.
            wanted += ["-endpoint", f"10.0.0.1:{endpoint.rsplit(':', 1)[1]}"]
        # Switches that only the newer version has; each closes a road out of this machine.
        for switch in ("-telemetry-url=", "-motd-feed-url=", "-no-skillinject"):
            if f"  {switch.rstrip('=')}" in offered:
                wanted.append(switch)
        self.command = [program, *wanted, *flags]
        self.start()

    def start(self):
        self.process = self.started.start(self.name, self.command, self.environment)

    def public_key(self):
        return json.loads((self.home / "identity.json").read_text())["public_key"]


class Node(Peer):
    """One `ramjet node`, whose socket Pilot's command line speaks to as to a daemon's."""

    kind = "ramjet"

    def __init__(self, started, registry, ramjet, version, letter, public=True, endpoint=None, beacon=None, flags=()):
        super().__init__(started, registry, version, f"ramjet-{version.replace('.', '-')}-{letter}")
        self.ramjet = ramjet
        self.listen = f"127.0.0.1:{free_port()}"
        # Where a daemon keeps its files, so that Pilot's command line finds them.
        state = self.home / ".pilot"
        self.command = [ramjet, "node", "--json", "--registry", registry.tcp, "--beacon", beacon or registry.beacon,
                        "--listen", self.listen, "--state", str(state), "--socket", self.socket,
                        "--owner", f"{self.name}@example.invalid"]
        self.command += ["--public"] if public else []
        self.command += ["--endpoint", endpoint] if endpoint else []
        self.command += flags
        self.start()

    def start(self):
        self.process = self.started.start(self.name, self.command, self.environment, capture=True)
        line = first_line(self.process, START_LIMIT_S)
        try:
            ready = json.loads(line)
            self.node, self.address = ready["node"], ready["address"]
        except (ValueError, KeyError, TypeError):
            raise Failed(f"{self.name} did not say that it is ready; its first line was {line!r}: {self.log()[-500:]}")

    def status(self):
        """What it says of itself to ramjet's own command line."""
        done = subprocess.run([self.ramjet, "status", "--json", "--socket", self.socket], env=self.environment,
                              capture_output=True, text=True, timeout=CALL_LIMIT_S)
        if done.returncode:
            raise Failed(f"ramjet status: exit {done.returncode}, {done.stderr}")
        return json.loads(done.stdout)

    def public_key(self):
        identity = json.loads((self.home / ".pilot" / "identity.json").read_text())
        key = identity["public_key"]
        base64.b64decode(key, validate=True)
        return key


def is_executable(path):
    return os.access(path, os.X_OK)
