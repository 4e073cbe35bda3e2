"""The exporter's process: beside the real server, in its command's group, and gone with it."""

import os
import subprocess
import sys
import threading

import psutil
import requests

from cloudvid_schema.ports import PORTS
from deploy.torchserve import PYTHONPATH, alive_after
from support.loopback import free_port
from support.proxies import reply, stub
from support.waiting import until
from test_exporter import SAMPLE


def test_the_real_server_has_one(server):
    """Five ports above its first; what waits is counted while it waits."""
    url = f"http://127.0.0.1:{server.process.port + PORTS - 1}"
    ready = requests.get(f"{url}/ready", timeout=20)
    assert ready.status_code == 200
    assert {stage: state["workers"]["READY"] for stage, state in ready.json()["stages"].items()} == {"t2i": 1, "i2v": 1}
    assert requests.get(f"{url}/live", timeout=20).json() == {"status": "alive"}
    client = server.client()
    picture = client.text_to_image("a", width=64, height=64, num_inference_steps=1).data
    runs, second_runs = threading.Event(), threading.Event()

    def clip(on_event):
        client.image_to_video(picture, num_frames=14, num_inference_steps=20, on_event=on_event)

    first = threading.Thread(target=clip, args=(lambda event: runs.set(),))
    first.start()
    assert runs.wait(timeout=60)
    second = threading.Thread(target=clip, args=(lambda event: second_runs.set(),))
    second.start()

    def waits():
        metrics = requests.get(f"{url}/metrics", timeout=20).text
        assert all(line.startswith("# ") or SAMPLE.fullmatch(line) for line in metrics.splitlines())
        assert not second_runs.is_set(), "the second began before it was seen waiting"
        return 'cloudvid_pending_requests{stage="i2v"} 1\n' in metrics

    until(waits)
    first.join()
    second.join()
    metrics = requests.get(f"{url}/metrics", timeout=20).text
    assert 'cloudvid_pending_requests{stage="i2v"} 0\n' in metrics
    assert 'ts_inference_requests_total{model_name="i2v"' in metrics


def start(port, tmp_path, program):
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "deploy.exporter",
            "--port",
            str(port),
            "--stage",
            "t2i",
            "--",
            sys.executable,
            "-c",
            program,
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": PYTHONPATH},
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def test_it_shares_its_commands_group_and_end(tmp_path):
    port = free_port()
    process = start(port, tmp_path, "import sys; sys.stdin.read()")

    def answers():
        try:
            return requests.get(f"http://127.0.0.1:{port + PORTS - 1}/ready", timeout=20).status_code == 503
        except requests.ConnectionError:
            return False

    until(answers)
    (exporter,) = psutil.Process(process.pid).children()
    assert os.getpgid(exporter.pid) == process.pid
    process.communicate()
    assert not alive_after([exporter], 30)


def test_a_port_that_is_taken_keeps_the_command_from_starting(tmp_path):
    port = free_port()
    with stub(lambda handler, body: reply(handler, 200), port + PORTS - 1):
        _, said = start(port, tmp_path, "raise SystemExit('it was started')").communicate(timeout=60)
    assert b"Address already in use" in said
    assert b"it was started" not in said
