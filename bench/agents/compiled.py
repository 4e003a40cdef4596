"""Closed loops by clients in machine code, one thread each: what a client written for speed gets out of each system.

`wrk` asks those that speak HTTP: one event loop, kept connections, one request on each at a time. `ramjet bench tasks`
asks ramjet: a requester's node whose one worker thread packs, seals and judges. Both send one payload over and over and
look at the status of every answer, not at its bytes; an answer that is no result ends the run. Percentiles are as each
client tells them.
"""

import json
import os
import pathlib
import shutil
import subprocess

#: `ramjet bench tasks` takes the median of so many runs, the least it allows.
RUNS = 5
ANSWER_LIMIT_S = 60
WRK_SCRIPT = """wrk.method = "POST"
wrk.headers["Content-Type"] = "{kind}"
wrk.body = [==[{body}]==]
function done(summary, latency)
    local e = summary.errors
    io.write(string.format('\\n{{"tasks":%d,"us":%d,"p50_us":%.1f,"p99_us":%.1f,"errors":%d}}\\n', summary.requests,
        summary.duration, latency:percentile(50), latency:percentile(99), e.connect + e.read + e.write + e.status + e.timeout))
end
"""


def find_wrk():
    """The load generator for HTTP."""
    found = shutil.which("wrk")
    if found is None:
        raise SystemExit("agents: no `wrk` on the path; install it (Debian's package `wrk`), or use --client asyncio")
    return found


def http(folder, url, body, kind, outstanding, seconds):
    """Requests over as many connections as may be outstanding: tasks, their rate, latency in microseconds."""
    script = pathlib.Path(folder, "wrk.lua")
    script.write_text(WRK_SCRIPT.format(kind=kind, body=body.decode()))
    command = [
        find_wrk(),
        "--threads",
        "1",
        "--connections",
        str(outstanding),
        "--duration",
        f"{max(1, round(seconds))}s",
    ]
    command += ["--timeout", f"{ANSWER_LIMIT_S}s", "--script", str(script), url]
    told = json.loads(called(command, seconds).strip().splitlines()[-1])
    if told["errors"] or not told["tasks"]:
        raise SystemExit(f"agents: {url}: {told['tasks']} answers and {told['errors']} errors; all were to be results")
    rate = told["tasks"] * 1e6 / told["us"]
    return {"tasks": told["tasks"], "tasks_per_s": rate, "p50_us": told["p50_us"], "p99_us": told["p99_us"]}


def market(binary, registry, state, skill, payload, outstanding, seconds):
    """Tasks of one engagement: their rate, latency in microseconds, and what the program says against the run."""
    command = [
        binary,
        "bench",
        "tasks",
        "--registry",
        registry,
        "--state",
        state,
        "--skill",
        skill,
        "--data",
        payload.decode(),
    ]
    command += [
        "--window",
        outstanding,
        "--pairs",
        RUNS,
        "--seconds",
        seconds / RUNS,
        "--retries",
        0,
        "--force",
        "--json",
    ]
    told = json.loads(called([str(word) for word in command], seconds).strip().splitlines()[-1])
    row = {key: told[key] for key in ("tasks_per_s", "p50_us", "p99_us")}
    return row, told["quiet"]["reasons"]


def called(command, seconds):
    """What a client printed."""
    limit_s = ANSWER_LIMIT_S + 4 * seconds
    # Nothing of the caller's settings reaches it.
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, env={"PATH": os.environ["PATH"]})
    if done.returncode != 0:
        raise SystemExit(f"agents: {command[0]} ended with {done.returncode}: {(done.stderr or done.stdout)[-2_000:]}")
    return done.stdout
