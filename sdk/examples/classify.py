"""Handwritten digits as a skill: a small neural network, trained in `load` on the 1,797 scans that scikit-learn brings.

    pip install -r requirements-classify.txt
    ramjet node --task-ready --accept-from anyone --agent digits='python classify.py'

A task's payload is one scan, 8 x 8 bytes of 0 to 16; its result ten floats, how likely each digit is. Every fourth scan
is kept from training, so that `requester.py digits` can tell how good it is.
"""

import ramjet

#: One of so many scans is for testing.
HELD_BACK = 4


@ramjet.skill("digits", max_batch=512, max_wait="500us", out=ramjet.f32(10), idempotent=True, max_payload=64)
class Digits:
    """A perceptron with one hidden layer."""

    def load(self) -> None:
        from sklearn.datasets import load_digits
        from sklearn.neural_network import MLPClassifier

        digits = load_digits()
        known = [i for i in range(len(digits.data)) if i % HELD_BACK]
        self.model = MLPClassifier((64,), max_iter=300, random_state=1).fit(digits.data[known], digits.target[known])

    def run(self, batch: ramjet.Batch) -> None:
        # A payload that is no scan fails its own task; the others are one array on the memory they came in.
        batch.out[:] = self.model.predict_proba(batch.array("u1", (64,)))


if __name__ == "__main__":
    ramjet.serve(Digits)
