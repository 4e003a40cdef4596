"""Tasks that flow while something is done to the system: every answer is compared, and counted once."""

import json
import subprocess
import threading
import time

from machine import PATIENCE_S, kill

# Lines a second that are read, which paces the run: `submit` hands out no line further than 65,536 after the last
# one that it could print.
RATE = 20_000
REGISTRY = "127.0.0.1:9000"


class Load:
    """A run of `ramjet submit --lines` in the machine. Use it as a context; `finish` gives what became of it."""

    def __init__(self, machine, seconds, arguments=()):
        self.machine, self.count = machine, RATE * seconds
        machine.path("/tmp/lines").write_text("".join(f"task {index:07}\n" for index in range(self.count)))
        self.process = machine.start(["ramjet", "--json", "submit", "--registry", REGISTRY, "--skill", "echo",
                                      "--lines", "/tmp/lines", *arguments],
                                     stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.began = time.time()
        self.marks = []
        self.answered = self.wrong = 0
        self.first_wrong = self.summary = None
        self.errors = b""
        self.threads = [threading.Thread(target=work, daemon=True) for work in (self.read, self.listen)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        self.machine.wait("the load flows", lambda: self.answered > RATE // 10 or self.process.poll() is not None)
        assert self.process.poll() is None, f"the load ended early: {self.errors.decode()[-500:]}"
        return self

    def __exit__(self, *_):
        kill(self.process)

    def read(self):
        began = time.monotonic()
        for line in self.process.stdout:
            entry = json.loads(line)
            if "line" not in entry:
                # The last object: what became of all of them.
                self.summary = entry
                continue
            expected = {"line": self.answered + 1, "result": f"task {self.answered:07}"}
            if entry != expected:
                self.wrong += 1
                self.first_wrong = self.first_wrong or line.decode().strip()
            self.answered += 1
            ahead = self.answered / RATE - (time.monotonic() - began)
            if self.answered % 200 == 0 and ahead > 0:
                time.sleep(ahead)

    def listen(self):
        for line in self.process.stderr:
            self.errors += line

    def more(self, lines):
        """Waits until so many further lines are answered."""
        goal = min(self.answered + lines, self.count)
        self.machine.wait(f"{lines} more lines", lambda: self.answered >= goal or self.process.poll() is not None)

    def finish(self):
        """Reads it to its end. Every task must have its own answer, once, in order."""
        self.process.wait(self.count / RATE + PATIENCE_S)
        for thread in self.threads:
            thread.join(PATIENCE_S)
        said = self.errors.decode()[-800:]
        assert self.process.returncode == 0, f"submit exits with {self.process.returncode}: {said}"
        lost = self.count - self.answered + self.wrong
        assert lost == 0, f"{lost} of {self.count} tasks lost; first: {self.first_wrong}; {said}"
        self.marks = self.summary["summary"]["timeline"]
        return {"tasks": self.count, "lost": lost}

    def pause_after(self, moment):
        """From a moment (seconds of the clock) until a result came over a new engagement, in seconds."""
        results = [self.began + mark["at_ms"] / 1_000 for mark in self.marks if mark["step"] == "first result"]
        return round(min(result for result in results if result > moment) - moment, 2)
