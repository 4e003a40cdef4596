"""`serve`: a skill on the agent port of a node, until it is told to stop.

Life: connect, HELLO, WELCOME, load, READY, batches, and an end by BYE (a signal), DRAIN (the node) or EOF. A process
that found its connection ready made in `RAMJET_AGENT_FD` belongs to the node and ends with it; one that connected by
path comes back with growing pauses when the node does.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import pathlib
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from . import _layout as layout
from ._agent import SDK, Agent, Welcome, map_arena
from ._paths import state_folder
from ._skill import Model
from .errors import NodeError, NodeRefused, ProtocolError

log = logging.getLogger("ramjet")

#: Pauses between attempts to reach a node that went away, in seconds.
PAUSE_FIRST_S, PAUSE_MAX_S = 0.1, 10.0
#: How long a node may take to answer HELLO.
WELCOME_WITHIN_S = 30.0


class _Stopped(BaseException):
    """A signal asks this process to end while it is not running a batch."""


class _NodeGone(Exception):
    """The connection ended; `drained` if the node or this side had announced it."""

    def __init__(self, drained: bool) -> None:
        super().__init__("the node closed the connection")
        self.drained = drained


def serve(skill: Any, *, socket_path: str | os.PathLike[str] | None = None, device: str | None = None) -> None:
    """Serves a skill until SIGTERM or ctrl-C, which let the running batch end first; a second one ends at once.

    The node is found by `RAMJET_AGENT_FD` (the node started this process), else `socket_path`, else
    `RAMJET_AGENT_SOCKET`, else ``agents.sock`` in the node's state folder.

    Args:
        skill: a class or function under `@ramjet.skill`, or an instance of such a class.
        socket_path: where the node listens for agents.
        device: what `load(self, device)` is given; see `ramjet.default_device`.

    Raises:
        NodeError: no node is there.
        NodeRefused: it refuses this skill; the text says why.
        ProtocolError: the node sent what cannot be.
    """
    model = Model(skill)
    service = _Service(model, device)
    with service.signals(), contextlib.suppress(_Stopped):
        inherited = os.environ.pop("RAMJET_AGENT_FD", "")
        if inherited:
            with contextlib.suppress(_NodeGone):
                service.converse(_inherited(inherited))
            return
        path = pathlib.Path(socket_path or os.environ.get("RAMJET_AGENT_SOCKET") or state_folder() / "agents.sock")
        service.attach(path)


def _inherited(text: str) -> socket.socket:
    try:
        return socket.socket(fileno=int(text))
    except (ValueError, OSError) as error:
        raise NodeError(f"RAMJET_AGENT_FD={text!r} is no open socket: {error}") from error


def _connect(path: pathlib.Path) -> socket.socket:
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        link.connect(os.fspath(path))
    except OSError as error:
        link.close()
        raise NodeError(
            f"no node listens for agents at {path}: {error.strerror or error}; start `ramjet node`, or name its socket "
            "with RAMJET_AGENT_SOCKET"
        ) from error
    return link


class _Service:
    """A skill through all its connections."""

    def __init__(self, model: Model, device: str | None) -> None:
        self.model = model
        self.device = device
        self.stopping = self.loaded = False
        #: Where BYE goes: set only while batches may come.
        self.link: socket.socket | None = None
        self.epoch = 0

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Turns SIGTERM and SIGINT into a drain while this lives."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.stopping or self.link is None:
            self.stopping = True
            raise _Stopped
        self.stopping = True
        log.info("draining: no further batch")
        try:
            self.link.send(layout.packet(layout.BYE, self.epoch))
        except OSError:
            raise _Stopped from None

    def attach(self, path: pathlib.Path) -> None:
        """Serves at the node that listens at `path`, and comes back when it does."""
        link: socket.socket | None = _connect(path)
        pause = PAUSE_FIRST_S
        while True:
            try:
                if link is not None:
                    pause = PAUSE_FIRST_S
                    self.converse(link)
            except _NodeGone as gone:
                if self.stopping:
                    return
                log.warning(
                    "%s%s; looking for it every %.1f s at most",
                    gone,
                    " after a drain" if gone.drained else "",
                    PAUSE_MAX_S,
                )
            # A signal interrupts the wait by `_Stopped`.
            threading.Event().wait(pause)
            pause = min(2 * pause, PAUSE_MAX_S)
            try:
                link = _connect(path)
            except NodeError as error:
                log.debug("%s", error)
                link = None

    def converse(self, link: socket.socket) -> None:
        """Serves one connection to its end, which is always an exception.

        Raises:
            _NodeGone: the other end is gone.
        """
        with link:
            try:
                welcome, epoch, arena = self.greet(link)
                agent = Agent(self.model, welcome, epoch, arena, link.send)
                try:
                    self.load()
                    self.epoch = epoch
                    self.link = link
                    link.send(layout.packet(layout.READY, epoch))
                    log.info("serving %r at node %d", self.model.spec.name, welcome.node)
                    self.batches(link, agent)
                finally:
                    self.link = None
                    agent.close()
            except (BrokenPipeError, ConnectionResetError) as error:
                raise _NodeGone(self.stopping) from error

    def load(self) -> None:
        """Loads the model, once, and spares what it made from garbage collection, which would stall batches."""
        if not self.loaded:
            self.model.load(self.device)
            gc.collect()
            gc.freeze()
            self.loaded = True

    def greet(self, link: socket.socket) -> tuple[Welcome, int, Any]:
        """Says HELLO and maps the arena of WELCOME."""
        link.settimeout(WELCOME_WITHIN_S)
        hello = json.dumps(self.model.spec.hello(SDK)).encode()
        link.send(layout.packet(layout.HELLO, 0, hello))
        try:
            data, descriptors, flags, _ = socket.recv_fds(link, layout.PACKET_LEN_MAX, 4, socket.MSG_CMSG_CLOEXEC)
        except TimeoutError as error:
            raise NodeError(f"the node did not answer HELLO within {WELCOME_WITHIN_S:.0f} s") from error
        try:
            if not data:
                raise _NodeGone(False)
            kind, epoch, body = layout.parse_packet(data)
            if kind == layout.REFUSED:
                raise NodeRefused(f"the node refuses skill {self.model.spec.name!r}: {body.decode('utf-8', 'replace')}")
            if kind != layout.WELCOME or len(descriptors) != 1:
                raise ProtocolError(f"a packet of kind {kind} with {len(descriptors)} descriptors in answer to HELLO")
            welcome = Welcome.parse(body)
            arena = map_arena(descriptors.pop(), welcome)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        link.settimeout(None)
        return welcome, epoch, arena

    def batches(self, link: socket.socket, agent: Agent) -> None:
        """Runs batches as they come."""
        space = bytearray(layout.PACKET_LEN_MAX)
        header, batch = layout.PACKET, layout.BATCH_PACKET
        drained = False
        while True:
            length = link.recv_into(space)
            if length == batch.size:
                kind, abi, epoch, *told = batch.unpack_from(space)
                if kind == layout.BATCH and abi == layout.ABI and epoch == agent.epoch:
                    agent.handle(layout.BatchPacket(*told))
                    continue
            if length == 0:
                raise _NodeGone(drained or self.stopping)
            if length < header.size:
                raise ProtocolError(f"a packet of {length} bytes, at least {header.size}")
            kind, abi, epoch = header.unpack_from(space)
            if abi != layout.ABI or epoch != agent.epoch:
                raise ProtocolError(f"a packet of ABI {abi} and epoch {epoch}, must be {layout.ABI} and {agent.epoch}")
            if kind == layout.BATCH:
                raise ProtocolError(f"a BATCH of {length - header.size} bytes, must be {layout.BATCH_BODY.size}")
            if kind == layout.DRAIN:
                drained = True
                log.info("the node drains: no further batch")
            else:
                raise ProtocolError(f"a packet of kind {kind} during batches")
