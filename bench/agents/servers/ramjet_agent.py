"""The work as a skill of ramjet: ``ramjet_agent.py noop | embed``."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import ramjet
import work

KIND = sys.argv[1]


@ramjet.skill(
    KIND, max_batch=work.MAX_BATCH[KIND], max_wait=work.MAX_WAIT_US[KIND] / 1e6, idempotent=True, max_payload=1 << 16,
    out=ramjet.f32(384) if KIND == "embed" else 1_024, stall="5min",
)  # fmt: skip
class Skill:
    """The handler, loaded once."""

    def load(self):
        self.handler = work.handler(KIND)

    def run(self, batch):
        if KIND == "embed":
            batch.out[:] = self.handler.rows(batch.texts)
            return None
        return self.handler(batch.payloads)


ramjet.serve(Skill)
