"""The cases as they end: one line each, what failed, and what held only when it was run again."""

import collections
import threading
import time

from harness.basics import FAILURES, reason_of


class Table:
    """Prints a line for each case as it ends; lanes that run side by side share it."""

    def __init__(self):
        self._verdicts = collections.defaultdict(list)  # (version, lane): "ok" or the line of a failure, case by case
        self._shaky = []     # the lines of failures that were run again
        self._lock = threading.Lock()
        print(f"{'VERSION':<8} {'DIRECTION':<13} {'CASE':<38} {'RESULT':<7} {'TIME':>7}  DETAIL", flush=True)

    def run(self, version, lane, direction, title, case):
        """Runs one case. What it returns is its detail."""
        began = time.monotonic()
        try:
            verdict, detail = "ok", case()
        except FAILURES as failed:
            verdict, detail = "FAILED", reason_of(failed)
        self._line(version, lane, direction, title, verdict, time.monotonic() - began, detail)

    def fault(self, version, lane, what):
        """A lane could not be run to its end."""
        self._line(version, lane, "", f"{lane}: the run itself", "FAILED", 0.0, what)

    def _line(self, version, lane, direction, title, verdict, took_s, detail):
        detail = " ".join(str(detail or "").split())
        line = f"{version:<8} {direction:<13} {title:<38} {verdict:<7} {took_s:5.1f} s  {detail}"
        with self._lock:
            self._verdicts[version, lane].append("ok" if verdict == "ok" else line)
            print(line, flush=True)

    def begin_again(self, version, lane):
        """Forgets how a lane went, to run it again, and keeps the lines of what failed for `close`."""
        with self._lock:
            self._shaky += [line for line in self._verdicts.pop((version, lane), []) if line != "ok"]

    def failures(self, version=None, lane=None):
        """The lines of what failed, of one lane or of all."""
        with self._lock:
            return [line for key, lines in self._verdicts.items() for line in lines
                    if line != "ok" and (version is None or key == (version, lane))]

    def close(self, took_s):
        """Prints what a reader of the last lines must know."""
        failures = self.failures()
        passed = sum(map(len, self._verdicts.values())) - len(failures)
        for line in self._shaky:
            print(f"interop: run again: {line}")
        for line in failures:
            print(f"interop: failed: {line}")
        again = f" ({len(self._shaky)} failed at first, their lanes were run again)" if self._shaky else ""
        print(f"interop: {passed} passed, {len(failures)} failed, {took_s:.0f} s{again}",
              flush=True)
