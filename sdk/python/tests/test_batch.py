"""Batches through `local`: what a skill sees, what becomes of what it returns, what it may not do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ramjet


def ran(run: Callable[[ramjet.Batch], Any], items: list[Any], deadline: Any = None, **options: Any) -> list[Any]:
    """Results of a skill that is `run` alone; errors as they are."""
    with ramjet.local(ramjet.skill("tried", **{"max_batch": 8, **options})(run)) as skill:
        return skill.map(items, deadline=deadline, return_exceptions=True)


def reasons(results: list[Any]) -> list[str | None]:
    return [str(result) if isinstance(result, ramjet.TaskFailed) else None for result in results]


# What is seen.


def test_items_come_in_batches_of_at_most_max_batch_and_results_in_order() -> None:
    sizes: list[int] = []

    def run(batch: ramjet.Batch) -> list[bytes]:
        sizes.append(len(batch))
        return [bytes(payload)[::-1] for payload in batch]

    items = [str(i) * (i % 7) for i in range(20)]
    assert ran(run, items) == [item[::-1].encode() for item in items]
    assert sizes == [8, 8, 4]


def test_work_bounds_a_batch_too() -> None:
    sizes: list[int] = []

    def run(batch: ramjet.Batch) -> list[bytes]:
        sizes.append(batch.work)
        return [b""] * len(batch)

    ran(run, [b"a" * 60] * 3 + [b"b" * 100], work="bytes", max_work=120)
    assert sizes == [120, 60, 100]


def test_payloads_are_views_that_cannot_be_written() -> None:
    def run(batch: ramjet.Batch) -> list[bytes]:
        assert [bytes(view) for view in batch.payloads] == [b"one", b"", b"three"]
        assert all(isinstance(view, memoryview) and view.readonly for view in batch.payloads)
        assert batch.bytes(2) == b"three" and batch[0] == b"one" and len(batch) == 3
        with pytest.raises(TypeError):
            batch.payloads[0][0] = 1
        with pytest.raises(IndexError, match="task 3 of a batch of 3"):
            batch.bytes(3)
        return [b"ok"] * 3

    assert ran(run, [b"one", b"", b"three"]) == [b"ok"] * 3


def test_a_payload_that_is_no_text_fails_alone() -> None:
    results = ran(lambda batch: [text.upper() for text in batch.texts], ["grün", b"a\xff", "c"])
    assert results[0] == "GRÜN".encode() and results[2] == b"C"
    assert reasons(results) == [None, "the payload is no UTF-8: byte 1 of 2", None]


def test_equal_payloads_are_one_array_without_a_copy() -> None:
    rows = np.arange(24, dtype="<f4").reshape(4, 2, 3)

    def run(batch: ramjet.Batch) -> list[bytes]:
        array = batch.array("<f4", (2, 3))
        assert np.array_equal(array, rows[:, :, :]) and not array.flags.writeable and not array.flags.owndata
        flat = batch.array(np.uint8)
        assert flat.shape == (4, 24)
        # The same memory: what the node flips there would show.
        assert array.__array_interface__["data"][0] == flat.__array_interface__["data"][0]
        return [b""] * len(batch)

    assert ran(run, list(rows)) == [b""] * 4


def test_odd_lengths_keep_their_rows_apart() -> None:
    # 12 bytes take 16 in the arena.
    rows = np.arange(9, dtype="<f4").reshape(3, 3)
    results = ran(lambda batch: [row.tobytes() for row in batch.array("<f4") * 2], list(rows))
    assert [np.frombuffer(result, "<f4").tolist() for result in results] == (rows * 2).tolist()


def test_a_payload_of_another_length_fails_alone_if_the_shape_is_known() -> None:
    def run(batch: ramjet.Batch) -> list[bytes]:
        array = batch.array("<i4", (2,))
        assert array.tolist() == [[1, 2], [0, 0], [5, 6]]
        return [row.tobytes() for row in array]

    results = ran(run, [np.array(row, "<i4") for row in ([1, 2], [3], [5, 6])])
    assert reasons(results) == [None, "a payload of 4 bytes, int32[2] has 8", None]
    assert np.frombuffer(results[2], "<i4").tolist() == [5, 6]


def test_lengths_that_differ_without_a_shape_fail_the_batch_with_what_would_help() -> None:
    results = ran(lambda batch: batch.array("<i4"), [b"1234", b"12345678"])
    assert all(
        "payloads of 4 to 8 bytes are no rows of int32: give the shape" in (text or "") for text in reasons(results)
    )


def test_deadlines_are_on_the_clock_of_monotonic() -> None:
    def run(batch: ramjet.Batch) -> list[bytes]:
        assert batch.deadline is not None and 4 < batch.deadline - time.monotonic() <= 5
        assert batch.deadlines == [batch.deadline] * 2
        assert batch.alive == [True, True]
        return [b"", b""]

    assert ran(run, [b"", b""], deadline="5s") == [b"", b""]

    def without(batch: ramjet.Batch) -> list[bytes]:
        assert batch.deadline is None and batch.deadlines == [None]
        return [b""]

    assert ran(without, [b""]) == [b""]


# What is returned.


def test_bytes_text_views_and_arrays_are_results() -> None:
    def run(batch: ramjet.Batch) -> list[Any]:
        return [
            b"bytes",
            bytearray(b"array"),
            memoryview(b"view"),
            "täxt",
            np.arange(2, dtype="<i2"),
            batch.payloads[5],
        ]

    assert ran(run, [b""] * 5 + [b"echo"]) == [b"bytes", b"array", b"view", "täxt".encode(), b"\0\0\1\0", b"echo"]


def test_a_view_of_long_elements_counts_its_bytes() -> None:
    assert ran(lambda batch: [memoryview(b"12345678").cast("I")], [b""]) == [b"12345678"]


def test_an_echo_may_return_the_batch_itself() -> None:
    assert ran(lambda batch: batch, [b"a", b"bc"]) == [b"a", b"bc"]


def test_fixed_results_are_written_in_place_returned_or_listed() -> None:
    expected = (np.arange(12, dtype="<f4").reshape(4, 3) * 2).tolist()
    items = list(np.arange(12, dtype="<f4").reshape(4, 3))

    def fill(batch: ramjet.Batch) -> None:
        batch.out[:] = batch.array("<f4") * 2

    ways: list[Callable[[ramjet.Batch], Any]] = [
        fill,
        lambda batch: batch.array("<f4") * 2,
        lambda batch: list(batch.array("<f4") * 2),
        lambda batch: [row.tobytes() for row in batch.array("<f4") * 2],
        lambda batch: (batch.array("<f4") * 2).astype("<f8"),
    ]
    for out in (ramjet.f32(3), ramjet.f32(1, 3)):
        for way in ways[: 5 if out.shape == (3,) else 0] or [lambda batch: batch.array("<f4").reshape(-1, 1, 3) * 2]:
            results = ran(way, items, out=out)
            assert out.stack(results).reshape(4, 3).tolist() == expected


def test_a_task_that_fails_beside_fixed_results_tells_its_reason() -> None:
    long = "because " * 200
    for width in (1, 3, 100):

        def fill(batch: ramjet.Batch) -> None:
            batch.out[:] = 7
            batch.fail(1, long)
            batch.refuse(2)

        out = ramjet.f32(width)
        results = ran(fill, [b""] * 4, out=out)
        assert out.stack([results[0], results[3]]).tolist() == [[7.0] * width] * 2
        assert (
            isinstance(results[1], ramjet.TaskFailed)
            and long.startswith(str(results[1]))
            and len(str(results[1])) >= 256
        )
        assert isinstance(results[2], ramjet.Busy)


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (None, "TypeError: run returned nothing"),
        ([b""], "ValueError: run returned 1 results for 2 tasks"),
        ([b""] * 3, "ValueError: run returned 3 results for 2 tasks"),
        ("ab", "TypeError: run returned one str"),
        (b"ab", "TypeError: run returned one bytes"),
        ({0: b"", 1: b""}, "TypeError: run returned one dict"),
        (7, "TypeError: 'int' object is not iterable"),
    ],
)
def test_what_is_not_one_result_for_each_task_fails_the_batch(returned: Any, told: str) -> None:
    assert all((text or "").startswith(told) for text in reasons(ran(lambda batch: returned, [b"", b""])))


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (None, "run returned nothing and did not fill batch.out"),
        (np.zeros((2, 4), "<f4"), r"run returned an array of shape (2, 4), must be (2, 3)"),
        (np.zeros((2, 3), "c16"), "Cannot cast array data"),
    ],
)
def test_what_is_no_row_for_each_task_fails_the_batch(returned: Any, told: str) -> None:
    assert all(told in (text or "") for text in reasons(ran(lambda batch: returned, [b"", b""], out=ramjet.f32(3))))


def test_one_result_that_cannot_be_fails_alone() -> None:
    for most in (4, 300):
        results = ran(lambda batch: [b"1" * (most + 1), b"1" * most, None, 7, "ok"], [b""] * 5, out=most)
        assert results[1] == b"1" * most and results[4] == b"ok"
        assert reasons(results) == [
            f"a result of {most + 1} bytes, at most {most} (out=)",
            None,
            "run gave a NoneType for this task; a result is bytes, str or an exception",
            "run gave a int for this task; a result is bytes, str or an exception",
            None,
        ]


def test_an_exception_as_a_result_is_that_tasks_end() -> None:
    results = ran(lambda batch: [b"fine", ValueError("odd"), ramjet.Busy(), ramjet.Late(), KeyError()], [b""] * 5)
    assert results[0] == b"fine"
    assert reasons(results) == [None, "ValueError: odd", None, None, "KeyError"]
    assert isinstance(results[2], ramjet.Busy) and isinstance(results[3], ramjet.Late)


def test_an_exception_fails_its_batch_alone_with_its_text() -> None:
    def run(batch: ramjet.Batch) -> Any:
        if batch.bytes(0) == b"bad":
            raise RuntimeError("out of luck")
        return batch.payloads

    results = ran(run, [b"good", b"bad", b"good"], max_batch=1)
    assert (results[0], results[2]) == (b"good", b"good")
    assert reasons(results)[1] == "RuntimeError: out of luck"


def test_busy_refuses_the_whole_batch() -> None:
    def run(batch: ramjet.Batch) -> Any:
        raise ramjet.Busy

    assert [type(result) for result in ran(run, [b"", b""])] == [ramjet.Busy] * 2


def test_a_failed_task_counts_whatever_is_returned_for_it() -> None:
    def run(batch: ramjet.Batch) -> list[str]:
        batch.fail(0, "not this one")
        batch.refuse(2, ramjet.Late)
        return ["a", "b", "c"]

    results = ran(run, [b""] * 3)
    assert (reasons(results)[0], results[1], type(results[2])) == ("not this one", b"b", ramjet.Late)


def test_progress_comes_before_the_answer_and_has_a_bound() -> None:
    def run(batch: ramjet.Batch) -> list[bytes]:
        batch.progress(1, b"half")
        batch.progress(1, b"more")
        batch.heartbeat()
        with pytest.raises(ValueError, match="1311 bytes, at most 1310"):
            batch.progress(0, b"x" * 1_311)
        with pytest.raises(IndexError):
            batch.progress(2, b"")
        return [b"", b""]

    with ramjet.local(ramjet.skill("tried", max_batch=2)(run)) as skill:
        skill.map([b""] * 4)
        assert skill.progress == {1: [b"half", b"more"], 3: [b"half", b"more"]}


def test_the_first_error_is_raised_unless_it_is_asked_for() -> None:
    with ramjet.local(ramjet.skill("tried", max_batch=2)(lambda batch: [b"", ValueError("no")])) as skill:
        with pytest.raises(ramjet.TaskFailed, match="ValueError: no"):
            skill.map([b"", b""])


def test_a_payload_beyond_the_limit_is_not_run() -> None:
    seen: list[int] = []

    def run(batch: ramjet.Batch) -> Any:
        seen.append(len(batch))
        return batch

    results = ran(run, [b"1", b"12345", b"3"], max_payload=4)
    assert (results[0], type(results[1]), results[2], seen) == (b"1", ramjet.TooBig, b"3", [2])
    with pytest.raises(TypeError, match="a int is no payload"):
        ran(run, [7])


# What may not outlive the batch.


def test_a_kept_payload_is_released_and_a_kept_batch_refuses() -> None:
    kept: list[Any] = []

    def run(batch: ramjet.Batch) -> Any:
        kept.extend([batch, batch.payloads[0]])
        return batch.payloads

    assert ran(run, [b"mine"]) == [b"mine"]
    batch, view = kept
    with pytest.raises(ValueError, match="released"):
        bytes(view)
    uses: list[Callable[[], Any]] = [
        lambda: batch.payloads,
        lambda: batch.texts,
        lambda: batch.bytes(0),
        lambda: batch.array("u1"),
        lambda: batch.alive,
        lambda: batch.deadlines,
        lambda: batch.fail(0, ""),
        lambda: batch.progress(0, b""),
        lambda: batch.heartbeat(),
    ]
    for use in uses:
        with pytest.raises(ramjet.BatchOver, match="is over"):
            use()
    assert "over" in repr(batch) and len(batch) == 1


@pytest.mark.parametrize("what", ["slice", "array", "frombuffer", "out"])
def test_memory_that_cannot_be_revoked_and_is_kept_fails_the_batch(what: str) -> None:
    kept: list[Any] = []
    keep: dict[str, Callable[[ramjet.Batch], Any]] = {
        "slice": lambda batch: batch.payloads[0][1:],
        "array": lambda batch: batch.array("u1")[0],
        "frombuffer": lambda batch: np.frombuffer(batch.payloads[0], "u1"),
        "out": lambda batch: batch.out,
    }

    def run(batch: ramjet.Batch) -> Any:
        if batch.bytes(0) == b"keep":
            kept.append(keep[what](batch))
        return [bytes(4)] * len(batch)

    results = ran(run, [b"keep", b"fine", b"fine"], max_batch=1, out=ramjet.u8(4))
    assert results[1:] == [bytes(4)] * 2, "only the batch that was kept fails"
    assert "ViewKept: run kept a view of batch 1 beyond it; copy" in (reasons(results)[0] or "")


def test_a_cycle_that_nobody_holds_is_not_kept() -> None:
    def run(batch: ramjet.Batch) -> Any:
        cycle: list[Any] = [batch.array("u1")]
        cycle.append(cycle)
        return batch.payloads

    assert ran(run, [b"a", b"b"], max_batch=1) == [b"a", b"b"]


def test_views_in_the_frames_of_an_exception_are_not_kept() -> None:
    def run(batch: ramjet.Batch) -> Any:
        view = batch.array("u1")
        raise ValueError(f"{view.shape}")

    assert reasons(ran(run, [b"a"])) == ["ValueError: (1, 1)"]
