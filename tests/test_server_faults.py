"""Faults of the real server in the middle of a batch: dead workers, restarts with new keys. Nothing is lost."""

import json
import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest
from conftest import ROOT
from folders import contents
from torchserve_process import Server, free_port

from cloudvid import Client, parse_scenes, render
from cloudvid.events import BatchFinished, StageProgress
from cloudvid_schema.protocol import Stage

pytestmark = pytest.mark.slow
WORKER_KILLS = 10
MEDIA = (".png", ".mp4")


def batch(count):
    """Scenes whose clips take a second or so."""
    t2i = {"width": 64, "height": 64, "num_inference_steps": 6}
    i2v = {"num_frames": 6, "num_inference_steps": 8, "decode_chunk_size": 2}
    document = [
        {"id": f"s{index}", "scene_desc": f"scene {index}", "t2i_params": t2i, "i2v_params": i2v}
        for index in range(count)
    ]
    return parse_scenes(document)


def pictures_and_clips(folder):
    return {name: data for name, data in contents(folder).items() if name.endswith(MEDIA)}


def test_workers_killed_in_mid_inference_cost_one_more_inference_each(server, tmp_path):
    scenes = batch(WORKER_KILLS)
    client = server.client()
    list(render(scenes, client, tmp_path / "undisturbed"))
    victims = {(f"s{index}", Stage.I2V if index % 2 else Stage.T2I) for index in range(WORKER_KILLS)}
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
    assert len(kills) == WORKER_KILLS
    assert pictures_and_clips(tmp_path / "out") == pictures_and_clips(tmp_path / "undisturbed")
    assert requests <= 2 * len(scenes) + WORKER_KILLS
    client.wait_until_ready(timeout=120)


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_killed_three_times_in_mid_batch_costs_the_requests_in_flight(
    sign, tmp_path, model_store, tiny_models, monkeypatch
):
    for stage, path in tiny_models.items():
        monkeypatch.setenv(f"CLOUDVID_{stage.upper()}_MODEL", str(path))
    server = Server(tmp_path / "run", free_port())
    place = ["--run-dir", str(server.run_dir), "--port", str(server.port), "--model-store", str(model_store)]
    keys, restarts = set(), []
    key_file = server.run_dir / "key_file.json"

    def restart():
        """As an operator would: end what is left of it, start it anew."""
        for action in ("stop", "start"):
            subprocess.run([sys.executable, str(ROOT / "deploy/server.py"), action, *place], check=True, timeout=120)

    try:
        restart()
        client = Client(server.url, key_file=key_file)
        client.wait_until_ready(timeout=120)
        scenes = batch(4)
        last = None
        for event in render(scenes, client, tmp_path / "out", wait=lambda attempt: 0.5):
            if isinstance(event, StageProgress) and event.stage is Stage.I2V and event.step == 4 and len(restarts) < 3:
                if event.scene in (scene for scene, _ in restarts):
                    continue
                keys.add(key_file.read_text())
                java = next(
                    p for p in psutil.process_iter() if p.name() == "java" and os.getpgid(p.pid) == group(server)
                )
                java.send_signal(sign)
                java.wait(timeout=60)
                thread = threading.Thread(target=restart)
                thread.start()
                restarts.append((event.scene, thread))
            last = event
        for _, thread in restarts:
            thread.join()
        assert len(restarts) == 3
        keys.add(key_file.read_text())
        assert len(keys) == 4, "each start wrote new keys"
        assert isinstance(last, BatchFinished)
        assert (last.done, last.failed) == (4, 0)
        list(render(scenes, client, tmp_path / "undisturbed"))
        assert pictures_and_clips(tmp_path / "out") == pictures_and_clips(tmp_path / "undisturbed")
    finally:
        server.stop()


def group(server):
    return json.loads(server.pid_file.read_text())["pid"]
