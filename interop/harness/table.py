"""The cases as they end: one line each, and whether all held."""

import threading
import time

from harness.basics import Failed

FAILURES = (Failed, OSError, KeyError, IndexError, ValueError, TypeError)


class Table:
    """Prints a line for each case as it ends; lanes that run side by side share it."""

    def __init__(self):
        self.verdicts = []
        self._lock = threading.Lock()
        print(f"{'VERSION':<8} {'DIRECTION':<13} {'CASE':<38} {'RESULT':<7} {'TIME':>7}  DETAIL", flush=True)

    def run(self, version, direction, title, case):
        """Runs one case; true if it held. What it returns is its detail."""
        began = time.monotonic()
        try:
            verdict, detail = "ok", case()
        except FAILURES as failed:
            name = "" if isinstance(failed, Failed) else f"{type(failed).__name__}: "
            verdict, detail = "FAILED", f"{name}{failed}"
        self._line(version, direction, title, verdict, time.monotonic() - began, detail)
        return verdict == "ok"

    def fault(self, version, lane, what):
        """A lane could not be run to its end."""
        self._line(version, "", f"{lane}: the run itself", "FAILED", 0.0, what)

    def _line(self, version, direction, title, verdict, took_s, detail):
        detail = " ".join(str(detail or "").split())
        with self._lock:
            self.verdicts.append(verdict)
            print(f"{version:<8} {direction:<13} {title:<38} {verdict:<7} {took_s:5.1f} s  {detail}", flush=True)

    def failures(self):
        return self.verdicts.count("FAILED")
