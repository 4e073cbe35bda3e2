"""TorchServe's management API and /ping, with workers that do as they are told: for deaths and questions at will."""

import json
import threading
from urllib.parse import parse_qs, urlsplit

from support.fake_server import Answer, error


def worker(number, status="READY", pid=None, **more):
    """A worker as TorchServe lists it."""
    pid = number * 10 if pid is None else pid
    return {"id": str(number), "status": status, "pid": pid, "memoryUsage": 0, "gpu": False, "gpuUsage": "N/A"} | more


class Fake:
    """One server with both stages. `new` makes a worker of its number, `looked` is called before each look.

    Attributes:
        puts: every change that was asked for: stage, min_worker, max_worker.
        asked: how often a worker was asked what it is.
        free: set where the worker that is asked has no job in hand.
    """

    def __init__(self, t2i=(9000,), i2v=(9001,), new=worker):
        self.workers = {"t2i": [worker(number) for number in t2i], "i2v": [worker(number) for number in i2v]}
        self.most = {"t2i": 64, "i2v": 64}
        self.pending = {"t2i": 0, "i2v": 0}
        self.version = "0.1.0"
        self.description = {"model": "model@1234567890abcdef", "seconds": {"denoise": 0.25, "decode": 1.0}}
        self.ping = 200
        self.new, self.looked = new, lambda stage: None
        self.puts, self.asked, self.last = [], 0, 9001
        self.free = threading.Event()
        self.free.set()

    def __call__(self, seen):
        parts = urlsplit(seen.path)
        if parts.path == "/ping":
            return Answer(self.ping)
        stage = parts.path.removeprefix("/models/")
        if stage not in self.workers:
            return error(404, "ModelNotFoundException", f"Model not found: {stage}")
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        if seen.method == "PUT":
            return self.put(stage, query)
        if "customized" not in query:
            self.looked(stage)
        return Answer(body=json.dumps([self.told(stage, "customized" in query)]).encode())

    def put(self, stage, query):
        assert "synchronous" not in query, "it would hold a network thread of the server's"
        least, most = int(query["min_worker"]), int(query["max_worker"])
        self.puts.append((stage, least, most))
        workers = self.workers[stage]
        del workers[most:]
        while len(workers) < least:
            self.last += 1
            workers.append(self.new(self.last))
        self.most[stage] = most
        return Answer(202, b"{}")

    def told(self, stage, is_asked):
        more = {}
        if is_asked:
            self.asked += 1
            self.free.wait(timeout=60)
            more["customizedMetadata"] = {"stage": stage, **self.description}
        return {
            "modelVersion": self.version,
            "minWorkers": len(self.workers[stage]),
            "maxWorkers": self.most[stage],
            "workers": self.workers[stage],
            "jobQueueStatus": {"pendingRequests": self.pending[stage], "remainingCapacity": 100 - self.pending[stage]},
            **more,
        }
