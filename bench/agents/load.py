"""The load: the same closed and open loops for every system, and the clients that they drive.

A closed loop keeps so many requests outstanding. An open loop sends at times laid down before, and measures from the
time that was meant, so that a system that stalls pays for what waited behind it. Every result is looked at
(`work.is_right`); a wrong one ends the run.
"""

import asyncio
import contextlib
import json
import random
import time

import ramjet
import work


#: A request without an answer so long after the last was sent counts as unanswered.
ANSWER_LIMIT_S = 30


class Http:
    """HTTP/1.1 over as many kept connections as are wanted at once, one request on each at a time."""

    def __init__(self, port, path, as_json):
        self.port, self.path, self.as_json = port, path, as_json
        self.free = []

    async def __aenter__(self):
        return self

    async def __aexit__(self, *outcome):
        for connection in self.free:
            connection.transport.close()

    def request(self, payload):
        """The bytes of one request."""
        body, kind = self.body(payload)
        head = f"POST {self.path} HTTP/1.1\r\nHost: l\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body

    def body(self, payload):
        """The body of one request, and its type."""
        if self.as_json:
            return json.dumps({"input": payload.decode()}).encode(), "application/json"
        return payload, "application/octet-stream"

    async def call(self, payload):
        """One request and its result."""
        # A server closes what has been idle for some seconds.
        while self.free and self.free[-1].transport.is_closing():
            self.free.pop()
        if self.free:
            connection = self.free.pop()
        else:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(Connection, "127.0.0.1", self.port)
        result = await connection.ask(self.request(payload))
        self.free.append(connection)
        return result


class Connection(asyncio.Protocol):
    """One kept connection; reads as much of HTTP as these servers speak: a status and a Content-Length."""

    def connection_made(self, transport):
        self.transport, self.held, self.answer = transport, b"", None

    def ask(self, request):
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self.answer

    def data_received(self, data):
        self.held += data
        head, found, body = self.held.partition(b"\r\n\r\n")
        if not found:
            return
        at = head.lower().index(b"content-length:") + len(b"content-length:")
        length = int(head[at:].split(b"\r\n", 1)[0])
        if len(body) < length:
            return
        self.held = b""
        status = head.split(b" ", 2)[1]
        if status == b"200":
            self.answer.set_result(body)
        else:
            self.answer.set_exception(RuntimeError(f"status {status.decode()}: {body[:200]!r}"))

    def connection_lost(self, error):
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(error or ConnectionResetError("the server closed the connection"))


class Market:
    """An engagement from the requester's node."""

    def __init__(self, socket_path, skill, concurrency):
        self.engagement = ramjet.engage(
            skill,
            tasks=100_000_000,
            concurrency=concurrency,
            duration="6h",
            accept_within="60s",
            socket_path=socket_path,
        )

    async def __aenter__(self):
        await self.engagement.__aenter__()
        return self

    async def __aexit__(self, *outcome):
        await self.engagement.__aexit__(*outcome)

    def call(self, payload):
        """One task and its result."""
        return self.engagement.submit(payload)


class Offline:
    """The model alone, in this process: whole batches one after the other, with nothing in between."""

    def __init__(self, kind):
        self.handler, self.batch = work.handler(kind), work.MAX_BATCH[kind]

    def run(self, payloads, seconds):
        """Tasks a second."""
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            batch = [payloads[(done + i) % len(payloads)] for i in range(self.batch)]
            assert all(map(lambda pair: work.is_right("embed", *pair), zip(batch, self.handler(batch))))
            done += self.batch
        return {"tasks_per_s": done / (time.perf_counter() - began)}


async def closed(client, kind, payloads, outstanding, seconds):
    """So many requests outstanding for so long: tasks a second, latency, in microseconds."""
    samples, until = [], time.perf_counter() + seconds
    last = until

    async def one(place):
        nonlocal last
        at = place
        while (began := time.perf_counter()) < until:
            payload = payloads[at % len(payloads)]
            result = await client.call(payload)
            last = time.perf_counter()
            samples.append(last - began)
            check(kind, payload, result)
            at += outstanding

    began = time.perf_counter()
    unanswered = await gather((one(place) for place in range(outstanding)), seconds + ANSWER_LIMIT_S)
    return {**figures(samples, last - began), "unanswered": unanswered}


async def open_loop(client, kind, payloads, rate, seconds, seed):
    """Requests at a Poisson process's times: latency from the time that was meant, in microseconds."""
    draw = random.Random(seed)
    samples, running, lag = [], set(), 0.0
    last = time.perf_counter()

    async def one(meant, payload):
        nonlocal last
        result = await client.call(payload)
        last = time.perf_counter()
        samples.append(last - meant)
        check(kind, payload, result)

    began = time.perf_counter()
    meant, sent = began, 0
    while (meant := meant + draw.expovariate(rate)) < began + seconds:
        # The loop sleeps with a grain of about a millisecond; what it sends late is told as lag.
        while (early := meant - time.perf_counter()) > 0:
            await asyncio.sleep(early)
        lag = max(lag, -early)
        task = asyncio.ensure_future(one(meant, payloads[sent % len(payloads)]))
        running.add(task)
        task.add_done_callback(running.discard)
        sent += 1
    unanswered = await gather(list(running), ANSWER_LIMIT_S)
    told = figures(samples, last - began)
    return {**told, "rate": rate, "generator_lag_ms": lag * 1e3, "unanswered": unanswered}


async def gather(waits, limit_s):
    """Waits for all, so long at the most; how many were not done. The first error ends the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, left = (
            await asyncio.wait(tasks, timeout=limit_s, return_when=asyncio.FIRST_EXCEPTION) if tasks else ((), ())
        )
        for task in done:
            task.result()
        return len(left)
    finally:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(BaseException):
            await asyncio.gather(*tasks, return_exceptions=True)


def check(kind, payload, result):
    """Ends the run at a wrong result."""
    if not work.is_right(kind, payload, result):
        raise SystemExit(f"agents: {payload[:40]!r} was answered with {len(result)} bytes that cannot be right")


def figures(samples, seconds):
    """Rate and percentiles."""
    samples.sort()
    if not samples:
        raise SystemExit("agents: not one request was answered")
    at = lambda share: samples[min(len(samples) - 1, int(len(samples) * share))] * 1e6  # noqa: E731
    return {"tasks": len(samples), "tasks_per_s": len(samples) / seconds, "p50_us": at(0.5), "p99_us": at(0.99)}
