"""A driver of Pilot's local socket: streams and datagrams of a daemon or node, by the published framing.

Frame: length u32, command u8, payload; an address is network u16 and node u32. One thread reads; replies pair up with
commands by their code, pushes go to the stream they name. Every wait is bounded.
"""

import queue
import socket
import struct
import threading
import time

from harness.basics import Failed, exactly

BIND, DIAL, SEND, CLOSE, SEND_TO = 0x01, 0x03, 0x06, 0x08, 0x0B
BOUND, DIALED, ACCEPTED, RECEIVED, CLOSED, ERROR, FROM = 0x02, 0x04, 0x05, 0x07, 0x09, 0x0A, 0x0C
DIAL_LIMIT_S = 30
READ_LIMIT_S = 30


class Driver:
    """One connection to a local socket."""

    def __init__(self, path):
        self.stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.stream.settimeout(READ_LIMIT_S)
        self.stream.connect(path)
        # Reading waits as long as there is nothing; closing the socket ends it.
        self.stream.settimeout(None)
        self.replies, self.datagrams, self.accepted = queue.Queue(), queue.Queue(), queue.Queue()
        self.streams, self.early = {}, {}
        self._lock, self._writing = threading.Lock(), threading.Lock()
        threading.Thread(target=self._read, daemon=True).start()

    def close(self):
        self.stream.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _write(self, command, payload):
        with self._writing:
            self.stream.sendall(struct.pack(">IB", 1 + len(payload), command) + payload)

    def _read(self):
        try:
            while True:
                length = struct.unpack(">I", exactly(self.stream, 4))[0]
                body = exactly(self.stream, length)
                self._take(body[0], body[1:])
        except (OSError, Failed, struct.error):
            self.replies.put((None, b""))
            for held in list(self.streams.values()):
                held.put(None)

    def _take(self, command, payload):
        if command in (RECEIVED, CLOSED):
            number = struct.unpack(">I", payload[:4])[0]
            with self._lock:
                inbox = self.streams.get(number) or self.early.setdefault(number, queue.Queue())
            inbox.put(payload[4:] if command == RECEIVED else None)
        elif command == ACCEPTED:
            self.accepted.put(struct.unpack(">HIHIH", payload[:14]))
        elif command == FROM:
            _, node, port, local = struct.unpack(">HIHH", payload[:10])
            self.datagrams.put((node, port, local, payload[10:]))
        else:
            self.replies.put((command, payload))

    def _reply(self, wanted, what, limit_s):
        try:
            command, payload = self.replies.get(timeout=limit_s)
        except queue.Empty:
            raise Failed(f"{what}: no answer of the local socket within {limit_s} s")
        if command == ERROR:
            raise Failed(f"{what}: {payload[2:].decode(errors='replace')}")
        if command != wanted:
            raise Failed(f"{what}: the local socket answered {command}")
        return payload

    def dial(self, node, port, limit_s=DIAL_LIMIT_S):
        """Opens a stream to a node's port; its number."""
        self._write(DIAL, struct.pack(">HIH", 0, node, port))
        number = struct.unpack(">I", self._reply(DIALED, f"dial node {node} port {port}", limit_s)[:4])[0]
        with self._lock:
            self.streams[number] = self.early.pop(number, queue.Queue())
        return number

    def bind(self, port):
        self._write(BIND, struct.pack(">H", port))
        self._reply(BOUND, f"bind {port}", DIAL_LIMIT_S)

    def send(self, number, data):
        self._write(SEND, struct.pack(">I", number) + data)

    def receive(self, number, limit_s=READ_LIMIT_S):
        """The next bytes of a stream; nothing at its end."""
        try:
            data = self.streams[number].get(timeout=limit_s)
        except queue.Empty:
            raise Failed(f"nothing on the stream within {limit_s} s")
        return data or b""

    def end(self, number):
        self._write(CLOSE, struct.pack(">I", number))

    def send_to(self, node, port, data):
        """One datagram."""
        self._write(SEND_TO, struct.pack(">HIH", 0, node, port) + data)

    def datagram(self, limit_s):
        """The next datagram: node, source port, port, bytes; `None` if there is none in time."""
        try:
            return self.datagrams.get(timeout=limit_s)
        except queue.Empty:
            return None

    def echo(self, node, length, digest, limit_s, chunk=16_384, ahead=256 << 10):
        """Sends `length` bytes to a node's echo and digests both directions.

        At most `ahead` bytes are on their way: with 1 MiB a daemon of 1.9.1 stops for good, also towards another of its
        kind and without any loss, because what it cannot hand on keeps it from what it could. Answers how long it took.
        """
        number = self.dial(node, 7)
        sent, received, began = 0, 0, time.monotonic()
        there, back = digest(), digest()
        block = bytes(range(256)) * (chunk // 256)
        while received < length:
            while sent < length and sent - received < ahead:
                # Every block is another one, so that nothing that is lost, doubled or moved stays unseen.
                data = (struct.pack(">Q", sent) + block)[:min(chunk, length - sent)]
                there.update(data)
                self.send(number, data)
                sent += len(data)
            if time.monotonic() - began > limit_s:
                raise Failed(f"{received} of {length} bytes came back within {limit_s} s")
            data = self.receive(number)
            if not data:
                raise Failed(f"the stream ended after {received} of {length} bytes")
            back.update(data)
            received += len(data)
        self.end(number)
        if there.digest() != back.digest():
            raise Failed(f"{length} bytes came back with another SHA-256")
        return time.monotonic() - began
