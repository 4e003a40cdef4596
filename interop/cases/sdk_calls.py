"""Calls of Pilot's Python SDK against one local socket; each answer is a line of JSON. Run by `driver.py`."""

import json
import sys
import time

from pilotprotocol import Driver, PilotError

ECHO = 7
PORT = 5_003
READ_LIMIT_S = 15
TASK_VERSION = "1.9.1"


def main():
    wanted = json.loads(sys.argv[1])

    def tell(call, answer):
        print(json.dumps({"call": call, "answer": answer}), flush=True)

    with Driver(wanted["socket"]) as driver:
        plain(driver, wanted, tell)
        streams(driver, wanted, tell)
        services(driver, wanted, tell)


def plain(driver, wanted, tell):
    tell("info", driver.info())
    tell("health", driver.health())
    tell("set_hostname", driver.set_hostname(wanted["name"]))
    tell("resolve_hostname", driver.resolve_hostname(wanted["name"]))
    tell("set_tags", driver.set_tags(["one", "two"]))
    tell("set_visibility", driver.set_visibility(True))
    tell("set_webhook", driver.set_webhook(""))
    tell("trusted_peers", driver.trusted_peers())
    tell("pending_handshakes", driver.pending_handshakes())
    tell("network_list", driver.network_list())
    for name, call in (("resolve_hostname of nobody", lambda: driver.resolve_hostname("nobody-at-all")),
                       ("dial a closed port", lambda: driver.dial(f"{wanted['address']}:5999")),
                       ("managed_status", lambda: driver.managed_status(1))):
        try:
            raise SystemExit(f"{name} did not fail but answered {call()}")
        except PilotError as refused:
            tell(name, {"refused": bool(str(refused))})
    if wanted["version"] == TASK_VERSION:
        tell("set_task_exec", driver.set_task_exec(True))


def streams(driver, wanted, tell):
    with driver.dial(f"{wanted['address']}:{ECHO}") as connection:
        block = bytes(range(256)) * 64
        connection.write(block)
        back = b""
        while len(back) < len(block):
            back += connection.read(65_536)
        assert back == block, "the echo differs"
        tell("echo", {"bytes": len(back)})
        if hasattr(connection, "set_read_deadline"):
            connection.set_read_deadline(time.time() + 0.2)
            try:
                raise SystemExit(f"read {connection.read()} after the deadline")
            except PilotError as late:
                tell("read deadline", {"refused": bool(str(late))})
    with driver.listen(PORT):
        tell("listen", {"port": PORT})
    driver.send_to(f"{wanted['address']}:4321", b"a datagram")
    tell("send_to", {})


def services(driver, wanted, tell):
    tell("send_message", driver.send_message(wanted["address"], b"hello from the SDK"))
    tell("send_message json", driver.send_message(wanted["address"], b'{"a":1}', "json"))
    tell("send_file", driver.send_file(wanted["address"], wanted["file"]))
    tell("publish_event", driver.publish_event(wanted["address"], "topic", b"event"))


if __name__ == "__main__":
    main()
