"""A skill for the kill test: ``marked_agent.py NAME IDEMPOTENT BATCH``. Each result is the process's number and the
payload.

Says on its standard output, in nanoseconds of CLOCK_MONOTONIC, when its model would be loaded, and writes every
payload that it is about to run into the file ``runs-PID`` of its home folder.
"""

import os
import sys
import time

import ramjet

NAME, IDEMPOTENT, BATCH = sys.argv[1], sys.argv[2] == "1", int(sys.argv[3])
MARK = f"{os.getpid()} ".encode()
RUNS = os.open(f"{os.environ['HOME']}/runs-{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)


@ramjet.skill(NAME, max_batch=BATCH, max_wait="500us", idempotent=IDEMPOTENT, out=256, max_payload=128)
class Marked:
    """Echoes, after a pause that makes it likely to die with a batch in its hands."""

    def load(self):
        print(time.monotonic_ns(), flush=True)

    def run(self, batch):
        os.write(RUNS, b"\n".join([*batch, b""]))
        time.sleep(0.002)
        return [MARK + payload for payload in batch]


ramjet.serve(Marked)
