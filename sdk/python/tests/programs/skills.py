"""Skills for the tests, one a process: ``skills.py echo | slow | stuck | moody | embed | crash | twin | once``."""

from __future__ import annotations

import os
import pathlib
import sys
import time
from typing import Any

import ramjet


@ramjet.skill("echo", max_batch=256, max_wait="200us", idempotent=True, max_payload=1 << 20, out=1 << 20)
def echo(batch: ramjet.Batch) -> Any:
    return batch.payloads


@ramjet.skill("slow", max_batch=4)
def slow(batch: ramjet.Batch) -> Any:
    """Says that it runs, then takes its time."""
    batch.progress(0, b"running")
    time.sleep(0.3)
    return batch.payloads


@ramjet.skill("stuck")
class Stuck:
    """Never gets ready."""

    def load(self) -> None:
        print("loading", file=sys.stderr, flush=True)
        time.sleep(60)

    def run(self, batch: ramjet.Batch) -> Any:
        return batch


@ramjet.skill("moody", max_batch=16, max_wait="1ms")
def moody(batch: ramjet.Batch) -> list[Any]:
    """Does what the payload says."""
    words: list[Any] = []
    for i, text in enumerate(batch.texts):
        if text == "raise":
            raise RuntimeError("as you wish")
        if text == "progress":
            for piece in range(5):
                batch.progress(i, b"%d" % piece)
        words.append({"fail": ValueError("one of them"), "busy": ramjet.Busy(), "late": ramjet.Late()}.get(text, text))
    return words


@ramjet.skill("embed", max_batch=64, max_wait="2ms", out=ramjet.f32(4))
class Embed:
    """Rows of floats to rows of floats."""

    def load(self, device: str) -> None:
        self.factor = 2.0

    def run(self, batch: ramjet.Batch) -> None:
        batch.out[:] = batch.array("<f4", (4,)) * self.factor


@ramjet.skill("crash", max_batch=8, max_wait="5ms", idempotent=True)
def crash(batch: ramjet.Batch) -> Any:
    """Dies of one payload."""
    if "poison" in batch.texts:
        os._exit(9)
    return batch.payloads


@ramjet.skill("twin", max_batch=8, max_wait="1ms")
def twin(batch: ramjet.Batch) -> Any:
    """One of two that do the same."""
    return batch.payloads


@ramjet.skill("once", max_batch=8, max_wait="5ms", idempotent=True)
def once(batch: ramjet.Batch) -> Any:
    """Dies the first time it is run."""
    marker = pathlib.Path(os.environ["HOME"]) / "died"
    if not marker.exists():
        marker.touch()
        os._exit(9)
    return batch.payloads


if __name__ == "__main__":
    skills = {
        "echo": echo, "slow": slow, "stuck": Stuck, "moody": moody, "embed": Embed, "crash": crash, "twin": twin,
        "once": once,
    }  # fmt: skip
    ramjet.serve(skills[sys.argv[1]])
