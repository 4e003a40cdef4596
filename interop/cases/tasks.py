"""Tasks between plain Pilot agents and ramjet: as JSON messages, and over the task service of 1.9.1.

And what ramjet's own command line says to a daemon: messages, files, trust.
"""

import hashlib
import json
import os
import subprocess
import threading

from cases.daemons import trusted
from cases.services import arrives
from harness.basics import CALL_LIMIT_S, SETTLE_LIMIT_S, Failed, expect, until

TASK_VERSION = "1.9.1"
FILE_LENGTH = 300_000
WORKER = ("--skill", "langid,sha256", "--accept-from", "anyone")


def rows(world, directions):
    if "Go > ramjet" in directions:
        way = "Go > ramjet"
        yield way, "task as JSON, result comes back", lambda: json_task(*pair(world))
        yield way, "task as JSON for no skill", lambda: json_no_skill(*pair(world))
        if world.version == TASK_VERSION:
            yield way, "task submit: run, results in files", lambda: submitted(*pair(world))
            yield way, "task submit: declined", lambda: declined(*pair(world))
    if "ramjet > Go" in directions:
        way = "ramjet > Go"
        yield way, "ramjet message", lambda: message(*pair(world))
        yield way, "ramjet file", lambda: file(*pair(world))
        yield way, "ramjet trust ask, revoke", lambda: trust(*pair(world))
        if world.version == TASK_VERSION:
            yield way, "ramjet task submit: results come", lambda: worked(*pair(world))
            yield way, "ramjet task submit: declined", lambda: refused(*pair(world))


def pair(world):
    return world.go("t"), world.ramjet_node("t", flags=WORKER)


def ramjet(node, *words):
    """Runs ramjet's command line against a node: its exit code and its answer."""
    command = [node.ramjet, *words, "--json", "--socket", node.socket]
    done = subprocess.run(command, env=node.environment, capture_output=True, text=True, timeout=CALL_LIMIT_S)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise Failed(f"ramjet {' '.join(words)}: exit {done.returncode}, {done.stderr}")
    return done.returncode, json.loads(lines[-1])


def inbox(peer, kind):
    folder = peer.home / ".pilot" / "inbox"
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"{kind}-*.json"))] if folder.is_dir() else []


def result_of(daemon, task_id):
    def found():
        for letter in inbox(daemon, "JSON"):
            result = json.loads(letter["data"])
            if result.get("task_id") == task_id:
                return result
        return None

    return until(f"the result of {task_id}", SETTLE_LIMIT_S, found)


def json_task(daemon, node):
    request = {"type": "task_request", "task_id": "json-1", "skill": "langid", "description": "which language?",
               "params": {"text": "Alle Menschen sind frei und gleich an Würde und Rechten geboren."}, "timeout": 10}
    daemon.control("send-message", node.address, "--data", json.dumps(request), "--type", "json")
    result = result_of(daemon, "json-1")
    expect(result["status"] == "completed" and result["result"]["lang"] == "deu", f"the result is {result}")
    return f"{result['result']['lang']}, in the inbox"


def json_no_skill(daemon, node):
    request = {"task_id": "json-2", "skill": "poetry", "description": "a sonnet"}
    daemon.control("send-message", node.address, "--data", json.dumps(request), "--type", "json")
    result = result_of(daemon, "json-2")
    expect(result["status"] == "refused" and "poetry" in result["error"], f"the result is {result}")
    return result["error"]


def record(daemon, task_id, *states):
    path = daemon.home / ".pilot" / "tasks" / "submitted" / f"{task_id}.json"

    def stands():
        held = json.loads(path.read_text())
        return held if held["status"] in states else None

    return until(f"{path.name} is {' or '.join(states)}", SETTLE_LIMIT_S, stands)


def submitted(daemon, node):
    sent = daemon.control("extras", "task", "submit", node.address, "--task", "sha256: abc")
    expect(sent.get("accepted"), f"submit says {sent}")
    digest = hashlib.sha256(b"abc").hexdigest()
    held = record(daemon, sent["task_id"], "SUCCEEDED")
    expect(held.get("results") == digest, f"the record says {held}")
    result = daemon.home / ".pilot" / "tasks" / "results" / f"{sent['task_id']}_result.txt"
    expect(result.read_text() == digest, f"{result.name} holds {result.read_text()!r}")
    ours = node.home / ".pilot" / "tasks" / "received" / f"{sent['task_id']}.json"
    until("the worker's record", SETTLE_LIMIT_S, lambda: json.loads(ours.read_text())["status"] == "SUCCEEDED")
    return f"{held['status']}, {digest[:16]}…"


def declined(daemon, node):
    sent = daemon.control("extras", "task", "submit", node.address, "--task", "write me a sonnet")
    held = record(daemon, sent["task_id"], "DECLINED")
    expect("skill" in held.get("status_justification", ""), f"the record says {held}")
    return held["status_justification"][:60]


def message(daemon, node):
    text = f"guten tag from {node.name}"
    code, told = ramjet(node, "message", daemon.address, "--data", text)
    expect(code == 0 and told["ack"] == f"ACK TEXT {len(text)} bytes", f"exit {code}, {told}")
    arrives(daemon, node, "TEXT", text.encode())
    code, told = ramjet(node, "message", daemon.address, "--data", "[1, 2]", "--kind", "json", "--reply-to", "m-1")
    expect(code == 0 and told["ack"].startswith("ACK JSON 6 bytes"), f"exit {code}, {told}")
    arrives(daemon, node, "JSON", b"[1, 2]")
    path = node.home / "no-text.bin"
    path.write_bytes(bytes(range(256)))
    code, told = ramjet(node, "message", daemon.address, "--file", str(path), "--kind", "binary")
    expect(code == 0 and told["ack"].startswith("ACK BINARY 256 bytes"), f"exit {code}, {told}")
    return told["ack"]


def file(daemon, node):
    path = node.home / "cli-file.bin"
    path.write_bytes(os.urandom(FILE_LENGTH))
    code, told = ramjet(node, "file", daemon.address, str(path))
    expect(code == 0, f"exit {code}, {told}")
    folder = daemon.home / ".pilot" / "received"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    until("the file", SETTLE_LIMIT_S, lambda: any(
        hashlib.sha256(held.read_bytes()).hexdigest() == digest
        for held in folder.glob("cli-file*") if held.is_file()))
    return f"{told['ack']}, {'chunked' if told['chunked'] else 'in one message'}"


def trust(daemon, node):
    code, told = ramjet(node, "trust", "ask", daemon.address, "by our own command line")
    expect(code == 0 and told["status"] in ("sent", "relayed"), f"exit {code}, {told}")
    until("the request", SETTLE_LIMIT_S, lambda: any(
        held["node_id"] == node.node for held in daemon.control("pending").get("pending") or []))
    daemon.control("approve", str(node.node))
    until("trust", SETTLE_LIMIT_S, lambda: any(
        row["node_id"] == daemon.node for row in ramjet(node, "trust", "list")[1]["trusted"]))
    code, told = ramjet(node, "trust", "revoke", daemon.address)
    expect(code == 0, f"exit {code}, {told}")
    until("the end of trust", SETTLE_LIMIT_S, lambda: node.node not in trusted(daemon))
    return "trusted, then not"


def submit_in_background(daemon, node, task):
    held = {}

    def run():
        try:
            held["code"], held["told"] = ramjet(node, "task", "submit", daemon.address, "--task", task, "--wait", "30s")
        except (Failed, subprocess.TimeoutExpired, ValueError) as failed:
            held["failed"] = failed

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    folder = daemon.home / ".pilot" / "tasks" / "received"

    def arrived():
        for path in folder.glob("*.json") if folder.is_dir() else []:
            row = json.loads(path.read_text())
            if row["task_description"] == task:
                return row["task_id"]
        return None

    task_id = until("the task at the daemon", SETTLE_LIMIT_S, arrived)
    return task_id, thread, held


def ended(thread, held):
    thread.join(CALL_LIMIT_S)
    if "failed" in held:
        raise held["failed"]
    expect("told" in held, "ramjet task submit has not ended")
    return held["code"], held["told"]


def worked(daemon, node):
    task_id, thread, held = submit_in_background(daemon, node, "count to three")
    daemon.control("extras", "task", "accept", "--id", task_id)
    daemon.control("extras", "task", "execute")
    daemon.control("extras", "task", "send-results", "--id", task_id, "--results", "one two three")
    code, told = ended(thread, held)
    expect(code == 0 and told["status"] == "SUCCEEDED", f"exit {code}, {told}")
    expect(told["results"] == "one two three", f"the record says {told}")
    return f"{told['status']}: {told['results']}"


def refused(daemon, node):
    task_id, thread, held = submit_in_background(daemon, node, "count to four")
    daemon.control("extras", "task", "decline", "--id", task_id, "--justification", "three is enough")
    code, told = ended(thread, held)
    expect(code == 1 and told["status"] == "DECLINED", f"exit {code}, {told}")
    expect("three is enough" in told["status_justification"], f"the record says {told}")
    return told["status_justification"]
