"""Two hosts for real: a network each, a TorchServe and its proxy on each, a front before them, the ordinary client."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from contextlib import ExitStack

import pytest
import requests

from deploy.torchserve import PORTS, Server
from support import ROOT, namespaces
from support.folders import no_half_file_has_a_final_name
from support.proxies import BEARER, TOKEN, certificate, folder_of, needs_nginx, proxy, tokens_file
from support.servers import naming
from support.waiting import until

pytestmark = [pytest.mark.slow, needs_nginx]
SCENES, STEPS = 8, 24


@pytest.fixture
def hosts():
    if reason := namespaces.why_not():
        pytest.skip(reason)
    with namespaces.joined(2) as (outside, inner):
        yield outside, inner


class Host:
    """A machine of its own, as far as its network goes."""

    def __init__(self, namespace, address, folder, model_store, tiny_models, tokens, tls, stack):
        self.server = Server(folder / "run", 8080)
        self._namespace = namespace
        environment = os.environ | naming(tiny_models)
        command = [
            *namespace.prefix,
            sys.executable,
            "-m",
            "deploy.server",
            "serve",
            "--port",
            "8080",
            "--run-dir",
            str(self.server.run_dir),
            "--model-store",
            str(model_store),
        ]
        with (folder / "server.txt").open("w") as log:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        stack.callback(self.kill)
        own = f"127.0.0.1:8080={self.server.run_dir / 'key_file.json'}"
        listen = ["--listen", f"{address}:8443", "--cert", str(tls[0]), "--key", str(tls[1])]
        self.proxy = stack.enter_context(proxy(tokens, *listen, "--t2i", own, "--i2v", own, prefix=namespace.prefix))

    def is_ready(self):
        ready = f"http://127.0.0.1:{8080 + PORTS - 1}/ready"
        with contextlib.suppress(requests.ConnectionError):
            return self._namespace.call(lambda: requests.get(ready, timeout=20).status_code == 200)
        return False

    def served(self, stage):
        """How many requests of a stage were carried out."""
        return sum(f" POST {stage} 200 " in line for line in list(self.proxy.lines))

    def refused(self):
        """How many bodies without a Content-Type its stages refused."""
        return sum(" POST t2i 415 " in line for line in list(self.proxy.lines))

    def kill(self):
        """All of it at once, as when the power goes."""
        groups = [self._process.pid, self.proxy.process.pid] if hasattr(self, "proxy") else [self._process.pid]
        with contextlib.suppress(OSError, ValueError):
            groups.append(json.loads(self.server.pid_file.read_text())["pid"])
        for group in groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        self._process.wait()


def both_were_asked(url, machines, before):
    """Whether each host has refused more than before, after one more request through the front."""
    requests.post(f"{url}/predictions/t2i", headers=BEARER, data=b"{}", timeout=20)
    return all(machine.refused() > count for machine, count in zip(machines, before, strict=True))


def test_a_batch_spreads_over_two_hosts_and_outlives_one(hosts, tmp_path, noise_store, tiny_models):
    outside, inner = hosts
    tokens, tls = tokens_file(tmp_path), certificate(tmp_path)
    with ExitStack() as stack:
        machines = []
        for index, namespace in enumerate(inner):
            folder = tmp_path / f"host{index}"
            folder.mkdir()
            address = f"198.18.0.{10 + index}"
            machines.append(Host(namespace, address, folder, noise_store, tiny_models, tokens, tls, stack))
        first, second = machines
        urls = [part for machine in machines for part in ("--host", machine.proxy.url)]
        listen = ["--listen", "127.0.0.1:8080", "--ca", str(tls[0])]
        front = stack.enter_context(proxy(tokens, *listen, *urls, prefix=outside.prefix))

        for machine in machines:
            until(machine.is_ready)

        for stage in ("t2i", "i2v"):  # the front asks every two seconds
            front.await_line(f"{stage} is ready", len(machines))
        until(lambda: "down;" not in (folder_of(front) / "pools.conf").read_text())
        before = [machine.refused() for machine in machines]  # nginx reads that file a moment later
        until(lambda: outside.call(lambda: both_were_asked(front.url, machines, before)))

        scenes = tmp_path / "scenes.json"
        scenes.write_text(
            json.dumps(
                [
                    {
                        "id": f"s{index}",
                        "scene_desc": f"scene {index}",
                        "t2i_params": {"width": 64, "height": 64, "num_inference_steps": 4},
                        "i2v_params": {"num_inference_steps": STEPS, "num_frames": 8},
                    }
                    for index in range(SCENES)
                ]
            )
        )
        command = [
            *outside.prefix,
            sys.executable,
            "-m",
            "cloudvid.cli",
            "run",
            str(scenes),
            "--json",
            "--output-dir",
            str(tmp_path / "out"),
            "--server",
            front.url,
            "--t2i-concurrency",
            "2",
            "--i2v-concurrency",
            "2",
        ]
        environment = os.environ | {"CLOUDVID_TOKEN": TOKEN, "PYTHONPATH": str(ROOT / "client")}
        client = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
        stack.callback(client.kill)
        events = defaultdict(list)
        step_of, served, counts = {}, {}, {}
        for line in client.stdout:
            event = json.loads(line)
            events[event["event"]].append(event)
            if event.get("stage") == "i2v":
                if event["event"] == "stage_progress":
                    step_of[event["scene"]] = event["step"]
                else:
                    step_of.pop(event["scene"], None)
            if not served and len(step_of) == 2 and max(step_of.values()) <= STEPS // 2:
                counts = {stage: [machine.served(stage) for machine in machines] for stage in ("t2i", "i2v")}
                if all(min(each) for each in counts.values()):
                    # Both hosts have made pictures and clips, and two clips run, one on each: the front counts.
                    served = counts
                    first.kill()
        assert client.wait() == 0
        (finished,) = events["batch_finished"]
        assert (finished["done"], finished["failed"]) == (SCENES, 0)
        assert served, f"the work did not spread: {counts}; {front.lines}"
        assert {event["stage"] for event in events["stage_retried"]} >= {"i2v"}, "nothing was lost with the host"
        assert second.served("i2v") > served["i2v"][1]
        steps = [(event["scene"], event["step"]) for event in events["stage_progress"] if event["phase"] == "denoise"]
        assert {(f"s{index}", step) for index in range(SCENES) for step in range(1, STEPS + 1)} <= set(steps)
        assert no_half_file_has_a_final_name(tmp_path / "out")
