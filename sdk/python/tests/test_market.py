"""The package against real processes: registry, worker's node, requester's node, agents; through encrypted tunnels."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest

import ramjet
from market import HERE, Market, until

LIMIT_S = 60


def requesting(market: Market, skill: str, use: Callable[[ramjet.Engagement], Any], **options: Any) -> Any:
    """Runs `use` in one engagement from node `q`, bounded in time."""

    async def job() -> Any:
        async with ramjet.engage(skill, socket_path=market.socket("q"), **options) as engagement:
            return await use(engagement)

    return asyncio.run(asyncio.wait_for(job(), LIMIT_S))


def wait_for_skill(market: Market, skill: str) -> None:
    until(f"{skill} is advertised", lambda: market.advertised(skill))


@pytest.fixture(scope="module")
def agents(market: Market) -> Market:
    """The market with agents of several skills attached by path, and one that the node owns."""
    for name in ("echo", "moody", "embed", "slow"):
        market.start_agent(f"agent-{name}", "w", "skills.py", name)
    for name in ("echo", "moody", "embed", "slow"):
        wait_for_skill(market, name)
    return market


def test_a_skill_of_the_node_itself_is_answered_settled_and_paid(market: Market) -> None:
    texts = [
        "Alle Menschen sind frei und gleich an Würde und Rechten geboren.",
        "All human beings are born free and equal in dignity and rights.",
    ] * 50

    async def use(engagement: ramjet.Engagement) -> Any:
        results = await engagement.map(texts)
        return engagement, results

    engagement, results = requesting(market, "langid", use, tasks=200)
    assert b'"deu"' in results[0] and b'"eng"' in results[1] and results[2:] == results[:2] * 49
    assert engagement.totals["accepted"] == 100 and engagement.settlement["accepted"] == 100
    assert engagement.worker == 1 and engagement.engagement is not None


def test_python_answers_python_in_order(agents: Market) -> None:
    items = [hashlib.sha256(b"%d" % i).digest()[: i % 33] for i in range(20_000)]
    results = requesting(agents, "echo", lambda engagement: engagement.map(items), tasks=30_000, concurrency=1_024)
    assert results == items


def test_long_payloads_and_results_pass(agents: Market) -> None:
    items = [os.urandom(length) for length in (0, 1_310, 1_311, 100_000, 1 << 20)]
    assert requesting(agents, "echo", lambda engagement: engagement.map(items), concurrency=8) == items


def test_rows_of_floats_come_back_as_one_array(agents: Market) -> None:
    rows = np.arange(400, dtype="<f4").reshape(100, 4)
    use = lambda engagement: engagement.map(list(rows), out=ramjet.f32(4))  # noqa: E731
    assert np.array_equal(requesting(agents, "embed", use), rows * 2)


def test_each_task_has_its_own_end(agents: Market) -> None:
    words = ["fine", "fail", "late", b"\xff\xfe", "also fine"]

    async def use(engagement: ramjet.Engagement) -> Any:
        return await engagement.map(words, return_exceptions=True)

    results = requesting(agents, "moody", use)
    assert (results[0], results[4]) == (b"fine", b"also fine")
    assert isinstance(results[1], ramjet.TaskFailed) and str(results[1]) == "ValueError: one of them"
    assert isinstance(results[2], ramjet.Late)
    assert isinstance(results[3], ramjet.TaskFailed) and "no UTF-8" in str(results[3])


def test_an_exception_is_told_to_the_requester_and_the_agent_goes_on(agents: Market) -> None:
    async def use(engagement: ramjet.Engagement) -> Any:
        with pytest.raises(ramjet.TaskFailed, match="RuntimeError: as you wish"):
            await engagement.submit("raise")
        return await engagement.submit("still there")

    assert requesting(agents, "moody", use) == b"still there"


def test_progress_streams_before_the_answer(agents: Market) -> None:
    async def use(engagement: ramjet.Engagement) -> Any:
        task = engagement.submit("progress")
        pieces = [piece async for piece in task.progress()]
        return pieces, await task, task.timing

    pieces, result, timing = requesting(agents, "moody", use)
    assert (pieces, result) == ([b"0", b"1", b"2", b"3", b"4"], b"progress")
    assert timing.round_trip_ns > timing.busy_ns > 0


def test_a_stream_keeps_the_order_and_takes_what_comes(agents: Market) -> None:
    async def items() -> AsyncIterator[str]:
        for i in range(500):
            yield str(i)

    async def use(engagement: ramjet.Engagement) -> Any:
        results = [result async for result in engagement.stream(items())]
        results += [result async for result in engagement.stream(str(i) for i in range(500, 600))]
        return results

    assert requesting(agents, "moody", use, concurrency=32) == [b"%d" % i for i in range(600)]


def test_a_deadline_that_cannot_be_met_is_refused_as_late(agents: Market) -> None:
    async def use(engagement: ramjet.Engagement) -> Any:
        # Four at a time, 300 ms each: of a hundred at most a few batches can be done in a second.
        return await engagement.map([b"x"] * 100, deadline="1s", return_exceptions=True)

    results = requesting(agents, "slow", use)
    late = [result for result in results if isinstance(result, ramjet.Late)]
    assert len(late) + results.count(b"x") == 100
    assert len(late) >= 75 and results.count(b"x") >= 1


def test_deadlines_of_tasks_are_their_own(agents: Market) -> None:
    async def use(engagement: ramjet.Engagement) -> Any:
        first = engagement.submit(b"first")
        async for _ in first.progress():
            break
        # It runs for 300 ms: one that may wait and one that may not.
        patient, hasty = engagement.submit(b"patient"), engagement.submit(b"hasty", deadline="1ms")
        with pytest.raises(ramjet.Late):
            await hasty
        return await first, await patient

    assert requesting(agents, "slow", use, deadline="20s") == (b"first", b"patient")


def test_the_judge_decides_what_counts(agents: Market) -> None:
    async def use(engagement: ramjet.Engagement) -> Any:
        results = await engagement.map(["good", "bad", "good"], return_exceptions=True)
        return engagement, results

    engagement, results = requesting(agents, "moody", use, judge=lambda payload, result: result != b"bad")
    assert (results[0], results[2]) == (b"good", b"good")
    assert isinstance(results[1], ramjet.Rejected) and results[1].result == b"bad"
    assert (engagement.totals["accepted"], engagement.totals["rejected"]) == (2, 1)


def test_run_needs_no_asyncio(agents: Market) -> None:
    assert ramjet.run("echo", ["a", "b"], socket_path=agents.socket("q")) == [b"a", b"b"]


def test_leaving_by_an_exception_cancels(agents: Market) -> None:
    async def use(engagement: ramjet.Engagement) -> Any:
        engagement.submit(b"x").forget()
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        requesting(agents, "slow", use)


def test_items_that_are_no_payload_fail_their_map_alone(agents: Market) -> None:
    async def use(engagement: ramjet.Engagement) -> Any:
        with pytest.raises(TypeError, match="a int is no payload"):
            await engagement.map(["a", 7])
        with pytest.raises(TypeError, match="a int is no payload"):
            engagement.submit(7)
        return await engagement.map([])

    assert requesting(agents, "echo", use) == []


# Offers that come to nothing.


def test_nobody_with_the_skill_is_an_expiry_with_its_diagnosis(market: Market) -> None:
    with pytest.raises(ramjet.OfferExpired) as told:
        requesting(market, "unheard-of", lambda engagement: engagement.map([]), accept_within="200ms")
    assert told.value.notified == 0
    assert told.value.diagnosis is not None and told.value.diagnosis.capable == 0


def test_the_gate_is_told_with_both_scores(market: Market) -> None:
    """A worker with polo, and a requester with none: refused with what it has and what it needs."""
    market.start_node("proud", "--task-ready", "--skill", "sha256", "--accept-from", "anyone")
    wait_for_skill(market, "sha256")
    # A requester below the gate earns a worker nothing; at the same polo it earns.
    market.start_node("newcomer")
    socket_path = market.socket("newcomer")
    ramjet.run("sha256", ["work"] * 100, socket_path=socket_path)

    def earned() -> int | None:
        standing = market.call("polo", "proud", "--registry", market.registry)
        return standing["polo"] if standing and standing["polo"] > 0 else None

    until("the worker has earned polo", earned)
    process = next(process for name, process in market.processes if name == "proud")
    market.end(process)
    market.socket("proud").unlink(missing_ok=True)
    market.start_node("proud", "--task-ready", "--skill", "sha256")
    wait_for_skill(market, "sha256")
    with pytest.raises(ramjet.GateRefused) as told:
        ramjet.run("sha256", ["work"], socket_path=socket_path)
    assert told.value.code == "gate" and told.value.polo_needed is not None and told.value.requester_polo is not None
    assert told.value.requester_polo < told.value.polo_needed


def test_what_the_registry_would_not_take_is_refused(market: Market) -> None:
    with pytest.raises((ramjet.OfferRefused, ramjet.NodeRefused), match="must be 1 to 64"):
        requesting(market, "No Such Name", lambda engagement: engagement.map([]))


def test_no_node_is_told_with_its_path(tmp_path: Any) -> None:
    with pytest.raises(ramjet.NodeError, match="socket .*missing.sock: .*is the node running"):
        ramjet.run("echo", ["a"], socket_path=tmp_path / "missing.sock")


# Agents that end badly.


def test_an_owned_agent_that_dies_is_started_again_and_its_tasks_run_once_more(market: Market) -> None:
    command = f"{sys.executable} {HERE / 'programs' / 'skills.py'} once"
    market.start_node("owner", "--task-ready", "--accept-from", "anyone", "--agent", f"once={command}")
    wait_for_skill(market, "once")
    results = requesting(market, "once", lambda engagement: engagement.map(["a", "b", "c"]))
    assert results == [b"a", b"b", b"c"]
    assert (market.folder / "owner" / "died").exists(), "the first process is dead"


def test_poison_fails_alone(market: Market) -> None:
    command = f"{sys.executable} {HERE / 'programs' / 'skills.py'} crash"
    market.start_node("victim", "--task-ready", "--accept-from", "anyone", "--agent", f"crash={command}")
    wait_for_skill(market, "crash")
    items = ["a", "b", "poison", "d"]
    results = requesting(market, "crash", lambda engagement: engagement.map(items, return_exceptions=True))
    assert [result for result in results if isinstance(result, bytes)] == [b"a", b"b", b"d"]
    assert isinstance(results[2], ramjet.TaskFailed) and "died" in str(results[2])


def test_a_signal_drains_without_losing_a_task(market: Market) -> None:
    first = market.start_agent("twin-1", "w", "skills.py", "twin")
    second = market.start_agent("twin-2", "w", "skills.py", "twin")
    until("both are ready", lambda: market.ready_agents("w", "twin") == 2 or None)
    wait_for_skill(market, "twin")

    async def use(engagement: ramjet.Engagement) -> Any:
        results = []
        async for result in engagement.stream(b"%d" % i for i in range(3_000)):
            results.append(result)
            if len(results) == 500:
                first.send_signal(signal.SIGTERM)
        return results

    assert requesting(market, "twin", use) == [b"%d" % i for i in range(3_000)]
    assert first.wait(20) == 0 and second.poll() is None
    market.end(second)


# The article's calls.


def test_the_articles_calls_from_both_sides(market: Market) -> None:
    done = threading.Event()

    def work() -> None:
        with ramjet.Driver(market.socket("w")) as driver:
            assert driver.set_capabilities(["reverse"], accept_from="anyone", capabilities={"model": "mirror"}) == [
                "reverse"
            ]
            driver.set_task_ready()
            for _ in range(2):
                task = driver.accept_task("30s")
                driver.report_progress(task, b"half")
                if task.payload == b"bad":
                    driver.fail_task(task, "not this one")
                else:
                    driver.complete_task(task, task.payload[::-1])
            with pytest.raises(TimeoutError, match="no task within 10 ms"):
                driver.accept_task("10ms")
            with pytest.raises(ramjet.NodeRefused, match="complete_task"):
                driver.complete_task(999, b"")
            assert done.wait(LIMIT_S)

    worker = threading.Thread(target=work)
    worker.start()
    wait_for_skill(market, "reverse")
    with ramjet.Driver(market.socket("q")) as driver:
        task = driver.submit_task("reverse", "hello", filters={"model": "mirror"})
        result = driver.wait_task_result(task, "30s")
        assert (result.status, result.value()) == ("done", b"olleh") and driver.progress(task) == [b"half"]
        assert result.details["worker"] == 1
        failed = driver.wait_task_result(driver.submit_task("reverse", "bad"), "30s")
        assert failed.status == "failed"
        with pytest.raises(ramjet.TaskFailed, match="not this one"):
            failed.value()
        unmatched = driver.wait_task_result(driver.submit_task("unheard-of", "", accept_within="100ms"), "30s")
        with pytest.raises(ramjet.EngagementClosed, match="expired"):
            unmatched.value()
        with pytest.raises(ramjet.NodeRefused, match="wait_task_result: task 7777"):
            driver.wait_task_result(7_777, "1s")
    done.set()
    worker.join(LIMIT_S)
    assert not worker.is_alive()
