"""The decorator, durations and outputs: what is taken, and what is refused by name, value and bound."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pytest

import ramjet
from ramjet._skill import SPEC, Model
from ramjet._units import nanoseconds


@pytest.mark.parametrize(
    ("written", "ns"),
    [
        ("500us", 500_000),
        ("500µs", 500_000),
        (" 20 ms ", 20_000_000),
        ("1.5s", 1_500_000_000),
        ("2min", 120_000_000_000),
        ("1h", 3_600_000_000_000),
        ("7ns", 7),
        (2, 2_000_000_000),
        (0.25, 250_000_000),
        (datetime.timedelta(milliseconds=3), 3_000_000),
    ],
)
def test_durations_are_read_as_people_write_them(written: Any, ns: int) -> None:
    assert nanoseconds("wait", written) == ns


@pytest.mark.parametrize("written", ["", "5", "5 parsecs", "-1s", "1e3s", -1, 1e9, float("nan"), True, None, b"1s"])
def test_what_is_no_duration_is_refused_by_its_name(written: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="^wait: "):
        nanoseconds("wait", written)


def test_what_a_skill_says_is_what_its_hello_says() -> None:
    @ramjet.skill(
        "embed-1.x_y",
        max_batch=256,
        max_wait="500us",
        max_work=9_000,
        work="bytes",
        out=ramjet.f32(384),
        idempotent=True,
        stall="1500ms",
        max_payload=4_096,
    )
    class Embed:
        def run(self, batch: ramjet.Batch) -> None: ...

    hello = getattr(Embed, SPEC).hello("test 1")
    pid = hello.pop("pid")
    assert isinstance(pid, int)
    assert hello == {
        "skill": "embed-1.x_y", "max_batch": 256, "max_wait_us": 500, "max_work": 9_000, "work": "bytes",
        "result_len_max": 1_536, "result_stride": 1_536, "idempotent": True, "stall_s": 2, "max_payload": 4_096,
        "sdk": "test 1",
    }  # fmt: skip


def test_a_short_fixed_size_leaves_room_for_the_reason_of_a_failure() -> None:
    @ramjet.skill("score", out=ramjet.f32(1))
    def score(batch: ramjet.Batch) -> None: ...

    spec = getattr(score, SPEC)
    assert (spec.result_len_max, spec.result_stride) == (260, 0)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"name": "Embed"}, r"skill 'Embed' must be 1 to 64 of \[a-z0-9._-\]"),
        ({"name": "embed/bge"}, "skill 'embed/bge'"),
        ({"name": "a" * 65}, "must be 1 to 64"),
        ({"name": ""}, "must be 1 to 64"),
        ({"max_batch": 0}, "max_batch: 0 must be 1 to 4096"),
        ({"max_batch": 4_097}, "max_batch: 4097"),
        ({"max_batch": 2.0}, "max_batch: 2.0 must be a whole number"),
        ({"max_wait": "11s"}, "max_wait: '11s' must be 0 s to 10 s"),
        ({"max_work": 0}, "max_work: 0"),
        ({"work": "tokens"}, "work: 'tokens' must be 'items' or 'bytes'"),
        ({"out": 0}, "out: bytes of a result: 0 must be 1 to 16777216"),
        ({"out": 1 << 25}, "out: bytes of a result: 33554432"),
        ({"stall": "10ms"}, "stall: '10ms' must be 1 s"),
        ({"max_payload": 0}, "max_payload: 0 must be 1"),
    ],
)
def test_what_cannot_be_is_refused_where_it_is_written(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises((ValueError, TypeError), match=told):
        ramjet.skill(arguments.pop("name", "embed"), **arguments)


def test_a_class_without_run_and_what_was_never_decorated_are_no_skills() -> None:
    with pytest.raises(TypeError, match="Nothing: a skill has a method run"):

        @ramjet.skill("nothing")
        class Nothing: ...

    class Plain:
        def run(self, batch: ramjet.Batch) -> None: ...

    with pytest.raises(TypeError, match="Plain is no skill"):
        ramjet.local(Plain)


def test_load_is_called_once_and_with_a_device_if_it_wants_one(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Any] = []

    @ramjet.skill("a")
    class Asks:
        def load(self, device: str) -> None:
            loaded.append(device)

        def run(self, batch: ramjet.Batch) -> None: ...

    @ramjet.skill("b")
    class Plain:
        def __init__(self, size: int = 3) -> None:
            self.size = size

        def load(self) -> None:
            loaded.append(self.size)

        def run(self, batch: ramjet.Batch) -> None: ...

    monkeypatch.setenv("RAMJET_DEVICE", "cuda:1")
    for target in (Asks, Plain, Plain(4)):
        model = Model(target)
        model.load(None)
        model.load(None)
    Model(Asks).load("cpu")
    assert loaded == ["cuda:1", 3, 4, "cpu"]


def test_no_gpu_is_assumed_where_none_may_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAMJET_DEVICE", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert ramjet.default_device() == "cpu"


def test_an_output_is_read_back_as_the_array_it_was() -> None:
    out = ramjet.i32(2, 3)
    rows = np.arange(12, dtype="<i4").reshape(2, 2, 3)
    results = [row.tobytes() for row in rows]
    assert out.stride == 24
    assert np.array_equal(out.stack(results), rows)
    assert np.array_equal(out.unpack(results[1]), rows[1])
    with pytest.raises(ValueError, match=r"result 1 has 3 bytes, <i4\[2, 3\] has 24"):
        out.stack([results[0], b"odd"])
    with pytest.raises(ValueError, match="a result of 3 bytes"):
        out.unpack(b"odd")
    for wrong in ((), (0,), (1 << 23,)):
        with pytest.raises(ValueError, match="shape|out: bytes of a result"):
            ramjet.i32(*wrong)
