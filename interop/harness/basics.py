"""Small things everything else uses: failures, bounded waits, an environment that leads nowhere.

Absent: anything that knows a process or a case.
"""

import os
import random
import select
import socket
import threading
import time

CALL_LIMIT_S = 40
START_LIMIT_S = 30
SETTLE_LIMIT_S = 15


class Failed(Exception):
    """A case did not hold; the text says what was seen."""


# What a case that does not hold may raise. A file that a peer has just begun to write is missing, empty or half there.
FAILURES = (Failed, OSError, KeyError, IndexError, ValueError, TypeError)


def reason_of(failed):
    """What was seen, in words: `Failed` has its own, anything else is named too."""
    return str(failed) if isinstance(failed, Failed) else f"{type(failed).__name__}: {failed}"


def expect(holds, otherwise):
    """Fails with `otherwise` unless it holds."""
    if not holds:
        raise Failed(otherwise)


def until(what, limit_s, attempt, pause_s=0.1):
    """Repeats an attempt until it holds; its last failure is the reason if it never does."""
    deadline = time.monotonic() + limit_s
    while True:
        try:
            result = attempt()
            if result:
                return result
            reason = Failed(f"{what}: not within {limit_s} s")
        except FAILURES as failed:
            reason = Failed(f"{what}: not within {limit_s} s: {reason_of(failed)}")
        if time.monotonic() > deadline:
            raise reason
        time.sleep(pause_s)


def closed_environment(home):
    """An environment that leads nowhere but to loopback: port 9 (discard) is closed."""
    nowhere = "http://127.0.0.1:9"
    return {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": str(home), "HTTP_PROXY": nowhere,
            "HTTPS_PROXY": nowhere, "ALL_PROXY": nowhere, "NO_PROXY": "127.0.0.1,localhost"}


# Below what the kernel gives to whoever asks for any port (`ip_local_port_range` begins at 32,768 by default): a port
# told to a program that has yet to start is taken by nobody in between.
_ports = iter(range(random.randrange(10_000, 20_000), 32_000))
_ports_lock = threading.Lock()


def free_port(kind=socket.SOCK_DGRAM):
    """A port that nobody has and that is told once in a run: for programs that must be told one before they start."""
    with _ports_lock:
        for port in _ports:
            with socket.socket(socket.AF_INET, kind) as probe:
                try:
                    probe.bind(("127.0.0.1", port))
                    return port
                except OSError:
                    continue
    raise Failed("no port below 32,000 is left")


def exactly(stream, count):
    """So many bytes of a stream."""
    received = b""
    while len(received) < count:
        more = stream.recv(count - len(received))
        if not more:
            raise Failed(f"the other end closed the connection after {len(received)} of {count} bytes")
        received += more
    return received


def first_line(process, limit_s):
    """The first line of a process's standard output, or what there was of it."""
    deadline, line = time.monotonic() + limit_s, b""
    while b"\n" not in line and time.monotonic() < deadline:
        if select.select([process.stdout], [], [], 0.2)[0]:
            more = os.read(process.stdout.fileno(), 4096)
            if not more:
                break
            line += more
    return line.split(b"\n")[0].decode(errors="replace")
