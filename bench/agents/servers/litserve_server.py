"""The work behind LitServe: ``litserve_server.py noop | embed PORT``."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import litserve
import work
from fastapi import Response

KIND, PORT = sys.argv[1], int(sys.argv[2])


class Served(litserve.LitAPI):
    """LitServe takes JSON, so a payload is text in it; results are bytes as with the others."""

    def setup(self, device):
        self.handler = work.handler(KIND)

    def decode_request(self, request):
        return request["input"].encode()

    def batch(self, inputs):
        return inputs

    def predict(self, payloads):
        return self.handler(payloads)

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        return Response(content=bytes(output), media_type="application/octet-stream")


if __name__ == "__main__":
    api = Served(max_batch_size=work.MAX_BATCH[KIND], batch_timeout=work.MAX_WAIT_US[KIND] / 1e6)
    server = litserve.LitServer(
        api,
        accelerator="cuda" if KIND == "embed" and work.cuda() else "cpu",
        workers_per_device=1,
        timeout=600,
        fast_queue=True,
    )
    server.run(host="127.0.0.1", port=PORT, num_api_servers=1, log_level="error", generate_client_file=False)
