"""The work behind Ray Serve with @serve.batch: ``ray_server.py noop | embed PORT``. Prints ``ready`` once it serves."""

import os
import pathlib
import sys
import time

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
HERE = str(pathlib.Path(__file__).resolve().parents[1])
os.environ["PYTHONPATH"] = os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")])
sys.path.insert(0, HERE)

import ray
import work
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

KIND, PORT = sys.argv[1], int(sys.argv[2])


@serve.deployment(num_replicas=1, max_ongoing_requests=4_096, ray_actor_options={"num_cpus": 1})
class Served:
    """One replica, as the others have one process."""

    def __init__(self, kind):
        self.handler = work.handler(kind)

    @serve.batch(max_batch_size=work.MAX_BATCH[KIND], batch_wait_timeout_s=work.MAX_WAIT_US[KIND] / 1e6)
    async def run(self, bodies):
        return self.handler(bodies)

    async def __call__(self, request: Request):
        return Response(await self.run(await request.body()), media_type="application/octet-stream")


ray.init(
    include_dashboard=False, _node_ip_address="127.0.0.1", num_cpus=2, log_to_driver=False, configure_logging=False
)
serve.start(http_options={"host": "127.0.0.1", "port": PORT})
serve.run(Served.bind(KIND), logging_config={"enable_access_log": False})
print("ready", flush=True)
while True:
    time.sleep(60)
