"""What the tests share: the market of real processes, or a loud word that there is none."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from market import Market, find_ramjet

NO_BINARY = "!!! NOT TESTED against a real node: no ramjet binary. Build one with `cargo build`, or name it with RAMJET_BIN. !!!"


@pytest.fixture(scope="session")
def market() -> Iterator[Market]:
    """A registry, a worker node `w` that serves anyone, and a node `q` that requests."""
    ramjet = find_ramjet()
    if ramjet is None:
        print(NO_BINARY, file=sys.stderr)
        pytest.skip(NO_BINARY)
    with Market(ramjet) as market:
        market.start_registry()
        market.start_node("w", "--task-ready", "--accept-from", "anyone", "--skill", "langid")
        market.start_node("q")
        yield market
