"""The work behind Mosec: ``BENCH_WORK=noop mosec_server.py --port PORT --address 127.0.0.1 …``.

Its workers are new processes that read the command line again, so the kind of work stands in the environment.
"""

import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import mosec
import work

KIND = os.environ["BENCH_WORK"]


class Served(mosec.Worker):
    """Bytes in and out, without an encoding of its own."""

    def __init__(self):
        self.handler = work.handler(KIND)

    def deserialize(self, data):
        return data

    def serialize(self, data):
        return data

    def forward(self, data):
        return self.handler(data)


if __name__ == "__main__":
    server = mosec.Server()
    server.append_worker(
        Served, num=1, max_batch_size=work.MAX_BATCH[KIND], max_wait_time=max(1, work.MAX_WAIT_US[KIND] // 1_000)
    )
    server.run()
