"""Faults of the real server in the middle of a batch: dead workers, restarts with new keys. Nothing is lost."""

import json
import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest
from conftest import ROOT, end
from folders import batch, pictures_and_clips
from loopback import free_port
from torchserve_process import Server

from cloudvid import Client, render
from cloudvid.events import BatchFinished, StageProgress
from cloudvid_schema.protocol import Stage

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("which", "count"), [("server", 2), ("noise_server", 6)])
def test_workers_killed_in_mid_inference_cost_one_more_inference_each(request, which, count, tmp_path):
    server = request.getfixturevalue(which)
    scenes = batch(count)
    client = server.client()
    list(render(scenes, client, tmp_path / "undisturbed"))
    victims = {(f"s{index}", Stage.I2V if index % 2 else Stage.T2I) for index in range(count)}
    kills, requests = [], 0
    for event in render(scenes, client, tmp_path / "out", wait=lambda attempt: 0.5):
        if isinstance(event, StageProgress) and event.phase == "denoise" and (event.scene, event.stage) in victims:
            victims.discard((event.scene, event.stage))
            (pid,) = server.pids(event.stage)
            os.kill(pid, signal.SIGKILL)
            kills.append(pid)
        if isinstance(event, BatchFinished):
            assert event.failed == 0
            requests = event.requests
    assert len(kills) == count
    assert pictures_and_clips(tmp_path / "out") == pictures_and_clips(tmp_path / "undisturbed")
    assert requests <= 3 * count
    client.wait_until_ready(timeout=120)


def test_a_server_ended_six_times_in_mid_batch_costs_the_requests_in_flight(
    noise_server, noise_store, tiny_models, tmp_path
):
    """Asked to end and killed outright in turn, three times each."""
    server = Server(tmp_path / "run", free_port())
    place = ["--run-dir", str(server.run_dir), "--port", str(server.port), "--model-store", str(noise_store)]
    keys, restarts, signs = set(), [], 3 * [signal.SIGTERM, signal.SIGKILL]
    key_file = server.run_dir / "key_file.json"

    def restart():
        """As an operator would: end what is left of it, start it anew."""
        for action in ("stop", "start"):
            command = [sys.executable, str(ROOT / "deploy/server.py"), action, "--profile", "tiny", *place]
            subprocess.run(command, check=True, timeout=120)

    list(render(batch(8), noise_server.client(), tmp_path / "undisturbed"))
    try:
        restart()
        client = Client(server.url, key_file=key_file)
        client.wait_until_ready(timeout=300)
        last = None
        for event in render(batch(8), client, tmp_path / "out", wait=lambda attempt: 0.5):
            if isinstance(event, StageProgress) and event.stage is Stage.I2V and event.step == 4 and signs:
                if event.scene in (scene for scene, _ in restarts):
                    continue
                keys.add(key_file.read_text())
                java = next(
                    p for p in psutil.process_iter() if p.name() == "java" and os.getpgid(p.pid) == group(server)
                )
                java.send_signal(signs.pop(0))
                java.wait(timeout=60)
                thread = threading.Thread(target=restart)
                thread.start()
                restarts.append((event.scene, thread))
            last = event
        for _, thread in restarts:
            thread.join()
        assert len(restarts) == 6
        keys.add(key_file.read_text())
        assert len(keys) == 7, "each start wrote new keys"
        assert isinstance(last, BatchFinished)
        assert (last.done, last.failed) == (8, 0)
        assert pictures_and_clips(tmp_path / "out") == pictures_and_clips(tmp_path / "undisturbed")
    finally:
        end(server)


def group(server):
    return json.loads(server.pid_file.read_text())["pid"]
