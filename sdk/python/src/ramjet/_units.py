"""Durations and sizes as people write them, turned into whole numbers.

Every function refuses what it cannot read by naming the argument, its value and what would do.
"""

from __future__ import annotations

import datetime
import re
from typing import Union

#: What says how long: ``"500us"``, ``"20ms"``, ``"1.5s"``, ``"2min"``, a ``timedelta``, or seconds as a number.
Duration = Union[str, float, int, datetime.timedelta]

_NS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "min": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_TEXT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(ns|us|µs|ms|s|min|h)\s*")


def nanoseconds(name: str, value: Duration, at_least: int = 0, at_most: int = 86_400_000_000_000) -> int:
    """Reads a duration as nanoseconds.

    ``name`` is the argument that the value came in; ``at_least`` and ``at_most`` are nanoseconds.

    Raises:
        ValueError: the value is no duration, or is out of bounds.
        TypeError: the value is of another type.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, float, datetime.timedelta)):
        raise TypeError(f"{name}: {value!r} must be a text such as '500us', seconds as a number, or a timedelta")
    if isinstance(value, str):
        found = _TEXT.fullmatch(value)
        if found is None:
            raise ValueError(
                f"{name}: {value!r} is no duration; write a number and one of {', '.join(_NS)}, as in '500us'"
            )
        length = float(found[1]) * _NS[found[2]]
    elif isinstance(value, datetime.timedelta):
        length = value.total_seconds() * 1e9
    else:
        length = value * 1e9
    if not at_least <= length <= at_most:
        raise ValueError(f"{name}: {value!r} must be {at_least / 1e9:g} s to {at_most / 1e9:g} s")
    return round(length)


def whole(name: str, value: int, at_least: int, at_most: int) -> int:
    """Checks a count or a size.

    Raises:
        ValueError: it is out of bounds.
        TypeError: it is no whole number.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: {value!r} must be a whole number")
    if not at_least <= value <= at_most:
        raise ValueError(f"{name}: {value} must be {at_least} to {at_most}")
    return value
