"""One version's world: a registry, its peers, and the directions in which a case is run.

Peers are started when a case first needs them, so that a run of a few cases starts a few. A case is a function of a
world, or of a world and a pair; what it returns is shown, and `Failed` says why it did not hold.
"""

import pathlib
import socket
import threading

from harness.basics import START_LIMIT_S, until
from harness.processes import Daemon, Node
from harness.weather import Relay


class World:
    """The peers of one version at one registry."""

    def __init__(self, started, registry, ramjet, version):
        self.started, self.registry, self.ramjet, self.version = started, registry, ramjet, version
        self.closers = []
        self._held = {}

    def close(self):
        for close in reversed(self.closers):
            close()
        self.closers = []

    def go(self, letter, **how):
        """The Pilot daemon of this letter, started and registered."""
        return self._peer(("go", letter), lambda: Daemon(self.started, self.registry, self.version, letter, **how))

    def ramjet_node(self, letter, **how):
        """The ramjet node of this letter, started and registered."""
        return self._peer(("ramjet", letter),
                          lambda: Node(self.started, self.registry, self.ramjet, self.version, letter, **how))

    def _peer(self, key, start):
        # Held before it has registered: if it does not, the next case waits for it too and starts no second one.
        peer = self._held[key] = self._held.get(key) or start()
        if peer.node is None:
            info = until(f"{peer.name} registers", START_LIMIT_S, lambda: peer.control("info"))
            peer.node, peer.address = info["node_id"], info["address"]
        return peer

    def pair(self, direction, letter=None, **how):
        """The two peers of a direction, the one that begins first; each direction has its own."""
        letter = letter or {"Go > ramjet": "a", "ramjet > Go": "c"}.get(direction, "e")
        makers = {"Go": self.go, "ramjet": self.ramjet_node}
        first, second = direction.split(" > ")
        one = makers[first](letter, **how)
        return one, makers[second](letter if first != second else letter + "2", **how)

    def through_weather(self, direction, letter="w"):
        """The two peers of a direction who only see each other through a relay; and the relay."""
        relay = Relay()
        self.closers.append(relay.close)
        makers = {"Go": self.go, "ramjet": self.ramjet_node}
        # Without a beacon that knows them nobody can tell them where the other one really is.
        silent = silent_beacon(self.closers)
        peers = []
        for side, kind in enumerate(direction.split(" > ")):
            name = f"{letter}{side}"
            peer = makers[kind](name, endpoint=relay.doors[side], beacon=silent)
            relay.place(side, peer.listen)
            peers.append(peer)
        return (*peers, relay)

    def walled_off(self, direction, letter="r"):
        """The two peers of a direction whom nothing but the beacon reaches; and their walls."""
        makers = {"Go": self.go, "ramjet": self.ramjet_node}
        peers, walls = [], []
        for side, kind in enumerate(direction.split(" > ")):
            wall = Wall(self.registry.beacon)
            self.closers.append(wall.close)
            walls.append(wall)
            peers.append(makers[kind](f"{letter}{side}", endpoint=wall.nowhere, beacon=wall.inside))
        return (*peers, walls)

    def path(self, name):
        return pathlib.Path(self.started.folder) / name


def _bound():
    held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    held.bind(("127.0.0.1", 0))
    return held


def _text(held):
    return f"127.0.0.1:{held.getsockname()[1]}"


def silent_beacon(closers):
    """A UDP address where a beacon might be and nobody answers."""
    held = _bound()
    closers.append(held.close)
    return _text(held)


class Wall:
    """A NAT that lets a peer speak with the beacon and nobody else.

    The peer takes `inside` for its beacon, and registers `nowhere`, where nobody listens. The beacon sees it at an
    address behind which nothing but the beacon is heard.
    """

    def __init__(self, beacon):
        host, port = beacon.rsplit(":", 1)
        self.beacon = (host, int(port))
        self._inner, self._outer, self._nowhere = _bound(), _bound(), _bound()
        self.inside, self.nowhere = _text(self._inner), _text(self._nowhere)
        self.passed, self.refused = 0, 0
        self._peer = None
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._outwards, self._inwards)]
        for held in (self._inner, self._outer):
            held.settimeout(0.2)
        for thread in self._threads:
            thread.start()

    def close(self):
        self._stop.set()
        for thread in self._threads:
            thread.join(5)
        for held in (self._inner, self._outer, self._nowhere):
            held.close()

    def _each(self, held, take):
        while not self._stop.is_set():
            try:
                datagram, source = held.recvfrom(65_536)
            except TimeoutError:
                continue
            except OSError:
                return
            take(datagram, source)

    def _outwards(self):
        def take(datagram, source):
            self._peer = source
            self._outer.sendto(datagram, self.beacon)
        self._each(self._inner, take)

    def _inwards(self):
        def take(datagram, source):
            if source == self.beacon and self._peer is not None:
                self.passed += 1
                self._inner.sendto(datagram, self._peer)
            else:
                self.refused += 1
        self._each(self._outer, take)
