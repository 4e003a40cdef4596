"""A market of real processes for the tests: a registry, a worker, a requester's node; all on loopback, ports of the
kernel's.

Invariants: only what was started here is ended, each by its own handle; every wait is bounded; nothing is left behind.
"""

from __future__ import annotations

import json
import os
import pathlib
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, TypeVar

PATIENCE_S = 60.0
ASK_AGAIN_S = 0.02
HERE = pathlib.Path(__file__).resolve().parent

T = TypeVar("T")


def find_ramjet() -> pathlib.Path | None:
    """The binary: `RAMJET_BIN`, else one built in this tree, else one on the path."""
    named = os.environ.get("RAMJET_BIN")
    if named:
        return pathlib.Path(named).resolve()
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE.parents[2] / "target"))
    for built in (target / "release" / "ramjet", target / "debug" / "ramjet"):
        if built.exists():
            return built
    found = shutil.which("ramjet")
    return pathlib.Path(found) if found else None


def until(what: str, ask: Callable[[], T | None], limit_s: float = PATIENCE_S) -> T:
    """Asks until there is an answer."""
    deadline = time.monotonic() + limit_s
    while True:
        answer = ask()
        if answer is not None:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {limit_s} s")
        time.sleep(ASK_AGAIN_S)


class Market:
    """The processes and where they are."""

    def __init__(self, ramjet: pathlib.Path) -> None:
        self.ramjet = ramjet
        # Unix socket paths are short.
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="rj-"))
        self.processes: list[tuple[str, subprocess.Popen[bytes]]] = []
        self.registry = ""

    def __enter__(self) -> Market:
        return self

    def __exit__(self, *outcome: object) -> None:
        # All at once; the registry, which came first, when nobody needs it any more.
        for _, process in self.processes[1:]:
            if process.poll() is None:
                process.terminate()
        for _, process in reversed(self.processes):
            self.end(process)
        shutil.rmtree(self.folder, ignore_errors=True)

    def environment(self, home: pathlib.Path) -> dict[str, str]:
        """Nothing of the caller's settings reaches a process."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if name in ("PATH", "LANG", "PYTHONPATH", "LD_LIBRARY_PATH")
        }
        return {**kept, "HOME": str(home)}

    def start(
        self, name: str, command: list[str], environment: dict[str, str] | None = None, out: bool = False
    ) -> subprocess.Popen[bytes]:
        home = self.folder / name
        home.mkdir(exist_ok=True)
        with open(self.folder / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                command,
                env={**self.environment(home), **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if out else log,
                stderr=log,
            )
        self.processes.append((name, process))
        return process

    def end(self, process: subprocess.Popen[bytes]) -> int:
        """Ends a process as its operator would, and by force if it does not."""
        if process.poll() is None:
            process.terminate()
        try:
            return process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()
        finally:
            if process.stdout is not None:
                process.stdout.close()

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def start_registry(self) -> None:
        command = [
            str(self.ramjet),
            "registry",
            "--listen",
            "127.0.0.1:0",
            "--beacon",
            "127.0.0.1:0",
            "--state",
            str(self.folder / "r"),
            "--json",
        ]
        process = self.start("registry", command, out=True)
        self.registry = json.loads(self.first_line(process))["listen"]

    def first_line(self, process: subprocess.Popen[bytes]) -> bytes:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], PATIENCE_S)
        assert ready, "no first line"
        return process.stdout.readline()

    def start_node(self, name: str, *flags: str) -> subprocess.Popen[bytes]:
        """A node, served at its socket and registered."""
        state = self.folder / name
        command = [
            str(self.ramjet),
            "node",
            "--registry",
            self.registry,
            "--state",
            str(state),
            "--hostname",
            name,
            *flags,
        ]
        process = self.start(name, command)
        until(f"node {name}", lambda: self.status(name) if self.alive(name, process) else None)
        return process

    def alive(self, name: str, process: subprocess.Popen[bytes]) -> bool:
        assert process.poll() is None, f"{name} ended: {self.log(name)}"
        return self.socket(name).exists()

    def socket(self, name: str) -> pathlib.Path:
        return self.folder / name / "ramjet.sock"

    def agents(self, name: str) -> pathlib.Path:
        return self.folder / name / "agents.sock"

    def call(self, *words: str) -> Any:
        """A command of the binary, and the JSON that it printed; None if it failed."""
        done = subprocess.run(
            [str(self.ramjet), *words, "--json"],
            env=self.environment(self.folder),
            capture_output=True,
            timeout=PATIENCE_S,
        )
        return json.loads(done.stdout) if done.returncode == 0 and done.stdout.strip() else None

    def status(self, name: str) -> Any:
        return self.call("status", "--socket", str(self.socket(name)))

    def ready_agents(self, node: str, skill: str) -> int:
        """How many agents of a skill take batches."""
        status = self.status(node) or {}
        return sum(row["ready"] for row in status.get("agents", []) if row["skill"] == skill)

    def advertised(self, skill: str) -> Any:
        """Workers that advertise a skill and are ready; None if there are none."""
        found = self.call(
            "resolve", "--registry", self.registry, "--capability", "task-ready", "--filter", f"skills={skill}"
        )
        return found or None

    def start_agent(self, name: str, node: str, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        """A Python program of this folder that attaches to a node by path."""
        command = [sys.executable, str(HERE / "programs" / program), *arguments]
        return self.start(name, command, {"RAMJET_AGENT_SOCKET": str(self.agents(node))})
