"""The systems under comparison: how each is started, reached and ended; and the processes of a run.

Each runs alone while it is measured: the others are not only idle but gone. Only what was started here is ended.
"""

import contextlib
import json
import os
import pathlib
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import compiled
import load

HERE = pathlib.Path(__file__).resolve().parent
START_LIMIT_S = 180
STOP_LIMIT_S = 30
CLOCK_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


class Processes:
    """A folder, and the processes that write into it. Each is the head of a process group of its own."""

    def __init__(self):
        # Unix socket paths are short.
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="rjb-"))
        self.started = []

    def __enter__(self):
        return self

    def __exit__(self, *outcome):
        for process in reversed(self.started):
            self.end(process)
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, name, command, out=False, **environment):
        """Starts a process with an environment of its own."""
        kept = {
            key: value
            for key, value in os.environ.items()
            if key in ("PATH", "LANG", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "BENCH_THREADS")
        }
        with open(self.folder / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                [str(word) for word in command], env={**kept, "HOME": str(self.folder), **environment}, cwd=self.folder,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE if out else log, stderr=log, start_new_session=True,
            )  # fmt: skip
        process.name = name
        self.started.append(process)
        return process

    def end(self, process):
        """Asks a process to end, then its group."""
        self.started = [held for held in self.started if held is not process]
        if process.poll() is None:
            process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_LIMIT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def until(self, what, ask, *processes):
        """Asks until there is an answer, as long as those processes live."""
        limit = time.monotonic() + START_LIMIT_S
        while not (answer := ask()):
            for process in processes:
                if process.poll() is not None:
                    raise SystemExit(f"agents: {process.name} ended: {self.log(process.name)}")
            if time.monotonic() > limit:
                names = [process.name for process in processes]
                raise SystemExit(f"agents: {what}: not within {START_LIMIT_S} s; " + "".join(map(self.log, names)))
            time.sleep(0.05)
        return answer

    def log(self, name):
        """The end of what a process wrote."""
        return (self.folder / f"{name}.log").read_text(errors="replace")[-2_000:]

    def first_line(self, process):
        """The first line of a process's standard output."""
        ready, _, _ = select.select([process.stdout], [], [], START_LIMIT_S)
        line = process.stdout.readline() if ready else b""
        if not line:
            raise SystemExit(f"agents: {process.name} said nothing: {self.log(process.name)}")
        return line


def cpu_s(processes):
    """CPU seconds of processes and everything below them, those that have ended and were waited for included."""
    children, times = {}, {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                text = pathlib.Path("/proc", entry, "stat").read_text()
                fields = text.rpartition(")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(entry))
                times[int(entry)] = sum(map(int, fields[11:15]))
    waiting, ticks = [process.pid for process in processes], 0
    while waiting:
        pid = waiting.pop()
        ticks += times.get(pid, 0)
        waiting += children.get(pid, [])
    return ticks * CLOCK_TICK_NS / 1e9


def free_port():
    """A port that the kernel finds free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class HttpSystem:
    """A server that speaks HTTP."""

    path, as_json = "/", False

    def __init__(self, processes, kind):
        self.kind, self.port = kind, free_port()
        self.processes = processes
        command, environment = self.command()
        self.server = processes.start(self.name, [sys.executable, *command], **environment)
        processes.until(f"{self.name} serves", self.serves, self.server)

    def serves(self):
        """Whether a request is answered."""
        payload = load.work.payloads(self.kind)[0]
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 60) as link:
            link.sendall(self.client(1).request(payload))
            return link.recv(64).startswith(b"HTTP/1.1 200")
        return False

    def client(self, outstanding):
        """What the load drives."""
        return load.Http(self.port, self.path, self.as_json)

    def compiled(self, payload, outstanding, seconds):
        """A closed loop by a compiled client: figures, and what that client says against the run."""
        body, kind = self.client(1).body(payload)
        url = f"http://127.0.0.1:{self.port}{self.path}"
        return compiled.http(self.processes.folder, url, body, kind, outstanding, seconds), []

    def tasks(self):
        """Tasks answered so far, as the system counts them; None if it does not."""
        return None

    def cpu_s(self):
        """CPU seconds of the server so far."""
        return cpu_s([self.server])

    def stop(self):
        """Ends the server."""
        self.processes.end(self.server)


class RayServe(HttpSystem):
    """Ray Serve, one replica, `@serve.batch`, bytes."""

    name = "ray-serve"

    def command(self):
        environment = {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TMPDIR": str(self.processes.folder),
            "RAY_AUTH_MODE": "disabled",
        }
        return [HERE / "servers" / "ray_server.py", self.kind, self.port], environment


class LitServe(HttpSystem):
    """LitServe, one worker, its fast queue, JSON in and bytes out."""

    name, path, as_json = "litserve", "/predict", True

    def command(self):
        return [HERE / "servers" / "litserve_server.py", self.kind, self.port], {}


class Mosec(HttpSystem):
    """Mosec, one worker, bytes."""

    name, path = "mosec", "/inference"

    def command(self):
        flags = ["--address", "127.0.0.1", "--port", self.port, "--timeout", 600_000, "--capacity", 8_192]
        return [HERE / "servers" / "mosec_server.py", *flags, "--path", self.processes.folder / "m"], {
            "BENCH_WORK": self.kind
        }


class Ramjet:
    """ramjet: a registry, a worker's node that owns one agent, a requester's node; tasks through the encrypted tunnel."""

    name = "ramjet"

    def __init__(self, processes, kind, binary, flags=(), agent_environment="", agent=None):
        self.kind, self.processes, self.binary = kind, processes, binary
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="m", dir=processes.folder))
        command = [
            binary,
            "registry",
            "--listen",
            "127.0.0.1:0",
            "--beacon",
            "127.0.0.1:0",
            "--state",
            self.folder / "r",
            "--json",
        ]
        self.registry = processes.start("registry", command, out=True)
        self.address = json.loads(processes.first_line(self.registry))["listen"]
        agent = agent or f"{agent_environment}{sys.executable} {HERE / 'servers' / 'ramjet_agent.py'} {kind}"
        self.worker = self.node("w", "--task-ready", "--accept-from", "anyone", "--agent", f"{kind}={agent}", *flags)
        self.requester = self.node("q", *flags)
        processes.until(f"{kind} is advertised", self.advertised, self.worker, self.requester)

    def node(self, name, *flags):
        """Starts a node."""
        command = [self.binary, "node", "--registry", self.address, "--state", self.folder / name, *flags]
        return self.processes.start(f"node-{name}", command)

    def socket(self, name):
        """A node's socket."""
        return self.folder / name / "ramjet.sock"

    def ask(self, *words):
        """A command of the binary and the JSON that it printed, or None."""
        done = subprocess.run(
            [self.binary, *words, "--json"], capture_output=True, timeout=60, env={"HOME": str(self.folder)}
        )
        return json.loads(done.stdout) if done.returncode == 0 and done.stdout.strip() else None

    def advertised(self):
        """Whether the skill is to be had."""
        found = self.ask(
            "resolve", "--registry", self.address, "--capability", "task-ready", "--filter", f"skills={self.kind}"
        )
        return found and self.socket("q").exists()

    def status(self):
        """What the worker's node says of the skill."""
        rows = (self.ask("status", "--socket", self.socket("w")) or {}).get("agents", [])
        return next((row for row in rows if row["skill"] == self.kind), None)

    def client(self, outstanding):
        """What the load drives."""
        return load.Market(self.socket("q"), self.kind, outstanding)

    def compiled(self, payload, outstanding, seconds):
        """A closed loop by a compiled client: figures, and what that client says against the run."""
        state = self.folder / "b"
        return compiled.market(self.binary, self.address, state, self.kind, payload, outstanding, seconds)

    def tasks(self):
        """Tasks answered so far, as the worker's node counts them."""
        return self.status()["done"]

    def cpu_s(self):
        """CPU seconds of registry, both nodes and the agent so far."""
        return cpu_s([self.registry, self.worker, self.requester])

    def stop(self):
        """Ends all of it."""
        for process in (self.requester, self.worker, self.registry):
            self.processes.end(process)


def find_binary(named):
    """The ramjet to measure: what was named, `RAMJET_BIN`, else the release build of this tree."""
    target = os.environ.get("CARGO_TARGET_DIR", HERE.parents[1] / "target")
    path = pathlib.Path(named or os.environ.get("RAMJET_BIN") or pathlib.Path(target, "release", "ramjet")).resolve()
    if not os.access(path, os.X_OK):
        raise SystemExit(
            f"agents: no executable at {path}; build it with `cargo build --release`, or name it with --ramjet"
        )
    return path
