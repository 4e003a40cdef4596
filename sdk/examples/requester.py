"""The other side: 100,000 sentences embedded, or handwritten digits told apart, by whoever of the market offers it.

    python requester.py embed                       # sentences of the Declaration of Human Rights in 69 languages
    python requester.py embed --text FILE --tasks 5000
    python requester.py digits

Prints what was done, how fast, what the market booked, and something by which a person sees that it is right.
"""

import argparse
import asyncio
import itertools
import pathlib
import re
import time

import numpy as np
import ramjet

DECLARATION = pathlib.Path(__file__).resolve().parents[2] / "runtime" / "data" / "udhr.txt"


def sentences(file: pathlib.Path) -> list[str]:
    """The sentences of a text: its lines, cut behind full stops, semicolons and their like in other scripts."""
    lines = file.read_text(encoding="utf-8").splitlines()
    cut = (part.strip() for line in lines for part in re.split(r"(?<=[.;!?。；।።׃])\s+", line))
    return [part for part in cut if part]


async def embed(options: argparse.Namespace) -> None:
    """Embeds so many sentences and shows which are nearest to the first of them."""
    distinct = sentences(options.text)
    texts = list(itertools.islice(itertools.cycle(distinct), options.tasks))
    print(f"{len(texts):,} sentences, {len(distinct):,} of them distinct, from {options.text.name}")
    async with engaged("embed", options) as market:
        began = time.perf_counter()
        vectors = await market.map(texts, out=ramjet.f32(384))
        told(market, len(texts), time.perf_counter() - began)
    lengths = np.linalg.norm(vectors, axis=1)
    assert np.allclose(lengths, 1, atol=1e-3), "every vector has length 1"
    again = min(len(texts) - 1, len(distinct))
    if again == len(distinct):
        assert np.allclose(vectors[0], vectors[again], atol=1e-2), "the same sentence has the same vector"
    likeness = vectors[: len(distinct)] @ vectors[0]
    print(f"nearest to: {texts[0]}")
    for i in np.argsort(-likeness)[1:4]:
        print(f"  {likeness[i]:.3f}  {texts[i]}")


async def digits(options: argparse.Namespace) -> None:
    """Has the scans told apart that were kept from training, and says how many are right."""
    from sklearn.datasets import load_digits

    from classify import HELD_BACK

    known = load_digits()
    kept = range(0, len(known.data), HELD_BACK)
    scans = list(itertools.islice(itertools.cycle(known.data[i].astype("u1") for i in kept), options.tasks))
    targets = list(itertools.islice(itertools.cycle(known.target[i] for i in kept), options.tasks))
    async with engaged("digits", options) as market:
        began = time.perf_counter()
        likely = await market.map(scans, out=ramjet.f32(10))
        told(market, len(scans), time.perf_counter() - began)
    right = float(np.mean(likely.argmax(axis=1) == targets))
    print(f"{right:.1%} of the {len(kept)} scans that were kept from training are right")


def engaged(skill: str, options: argparse.Namespace) -> ramjet.Engagement:
    """An engagement for so many tasks."""
    return ramjet.engage(
        skill, tasks=options.tasks, concurrency=options.concurrency, duration="6h", socket_path=options.socket
    )


def told(market: ramjet.Engagement, tasks: int, seconds: float) -> None:
    """Says what was done."""
    print(f"{tasks:,} tasks by node {market.worker} in {seconds:.1f} s: {tasks / seconds:,.0f} a second")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("skill", choices=("embed", "digits"))
    parser.add_argument(
        "--text", type=pathlib.Path, default=DECLARATION, help="a text file, UTF-8 [default: the Declaration]"
    )
    parser.add_argument(
        "--tasks", type=int, default=100_000, help="how many; the text is gone through again if it is shorter"
    )
    parser.add_argument(
        "--concurrency", type=int, default=512, help="tasks without an answer at a time [default: %(default)s]"
    )
    parser.add_argument(
        "--socket", type=pathlib.Path, help="the node's socket [default: RAMJET_SOCKET, else the state folder's]"
    )
    options = parser.parse_args()
    asyncio.run({"embed": embed, "digits": digits}[options.skill](options))


if __name__ == "__main__":
    main()
