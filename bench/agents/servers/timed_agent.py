"""A skill whose batches take a known time: ``timed_agent.py MAX_BATCH BASE_US EACH_US sleep | spin``.

A batch of n takes BASE_US + n × EACH_US, one tenth up or down, evenly drawn, as models' batches differ too. `sleep` is a
model on a device of its own, `spin` one that takes a core. Each result is its payload.
"""

import random
import sys
import time

import ramjet

MAX_BATCH, BASE_US, EACH_US = map(int, sys.argv[1:4])
SPINS = sys.argv[4] == "spin"
#: A sleep ends up to so much late; the rest of the time is spun away.
SLEEP_GRAIN_S = 0.0003
DRAW = random.Random(1)


@ramjet.skill("timed", max_batch=MAX_BATCH, max_wait="1ms", idempotent=True, out=64, max_payload=64)
def timed(batch):
    """Takes its time."""
    end = time.perf_counter() + (BASE_US + EACH_US * len(batch)) * DRAW.uniform(0.9, 1.1) / 1e6
    if not SPINS:
        time.sleep(max(0.0, end - time.perf_counter() - SLEEP_GRAIN_S))
    while time.perf_counter() < end:
        pass
    return batch.payloads


ramjet.serve(timed)
