"""ps, scale and wait, as an operator sees them; and the real server, scaled under load."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading

import psutil
import pytest
from rich.console import Console

from cloudvid import Client, render
from cloudvid.batch.events import StageProgress
from cloudvid.cli.status import look_at, table, waiting
from cloudvid_schema.protocol import Stage
from cloudvid_schema.run_folder import point_to, remove_pointer
from support.changed_archives import build, with_noise
from support.command_line import cloudvid, rows
from support.fake_management import Fake, worker
from support.fake_server import Answer, error, fake_server
from support.folders import batch, pictures_and_clips, write_scenes
from support.loopback import client_of, closed_port
from support.servers import running_server


def at(server):
    return {"CLOUDVID_SERVER": server.url, "CLOUDVID_MANAGEMENT": server.url, "CLOUDVID_TOKEN": "t"}


def test_ps_shows_a_row_per_stage_and_notes(tmp_path):
    fake = Fake(t2i=())
    fake.ping = 500
    with fake_server(fake) as server:
        done = cloudvid("ps", cwd=tmp_path, environment=at(server))
        one = cloudvid("ps", "--stage", "i2v", "--json", cwd=tmp_path, environment=at(server))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert rows("\n".join(lines[:3]))["t2i"]["workers"] == "none"
    assert rows("\n".join(lines[:3]))["i2v"]["workers"] == "1 ready"
    assert lines[3] == "t2i has no workers and refuses requests; start one with `cloudvid scale t2i 1`"
    assert "has given up a worker" in lines[4]
    assert len(lines) == 5
    (stage,) = json.loads(one.stdout)["stages"]
    assert (stage["stage"], stage["ready"], stage["unhealthy"]) == ("i2v", 1, True)
    assert stage["description"]["model"] == "model@1234567890abcdef"


def test_a_servers_description_cannot_control_a_terminal(tmp_path):
    fake = Fake()
    fake.description["model"] = fake.version = "\x1b[2J\rowned\u202e"
    with fake_server(fake) as server:
        for command in ("ps", "doctor"):
            done = cloudvid(command, cwd=tmp_path, environment=at(server))
            assert "\\x1b[2J\\rowned\\u202e" in done.stdout
            assert all(line.isprintable() for line in done.stdout.split("\n"))


def test_ps_of_an_absent_server_is_exit_code_3(tmp_path):
    url = f"http://127.0.0.1:{closed_port()}"
    with fake_server(Fake()) as server:
        arguments = ["--management", url, "--server", server.url, "--token", "t"]
        done = cloudvid("ps", *arguments, cwd=tmp_path)
        document = cloudvid("ps", "--json", *arguments, cwd=tmp_path)
    assert done.returncode == document.returncode == 3
    assert rows("\n".join(done.stdout.splitlines()[:3]))["t2i"]["workers"] == "unknown"
    assert f"t2i: nothing answers at {url}/models/t2i: Connection refused" in done.stdout
    assert all("Connection refused" in stage["error"] for stage in json.loads(document.stdout)["stages"])


def test_watching_shows_the_stages_again_until_it_is_interrupted(tmp_path):
    fake = Fake()
    with fake_server(fake) as server:
        command = [sys.executable, "-m", "cloudvid.cli", "ps", "--watch", "0.1", "--json"]
        with subprocess.Popen(
            command, cwd=tmp_path, env=os.environ | at(server), stdout=subprocess.PIPE, text=True
        ) as process:
            first = json.loads(process.stdout.readline())
            fake.workers["t2i"].append(worker(9002))
            while len(json.loads(process.stdout.readline())["stages"][0]["workers"]) < 2:
                pass
            process.send_signal(signal.SIGINT)
            process.stdout.read()
            assert process.wait(timeout=30) == 130
    assert first["stages"][0]["ready"] == 1


def test_scale_shows_how_it_goes_and_ends_with_the_workers(tmp_path):
    fake = Fake()
    with fake_server(fake) as server:
        done = cloudvid("scale", "i2v", 2, cwd=tmp_path, environment=at(server))
        document = cloudvid("scale", "i2v", 0, "--json", cwd=tmp_path, environment=at(server))
        over = cloudvid("scale", "i2v", 65, cwd=tmp_path, environment=at(server))
    assert (done.returncode, document.returncode, over.returncode) == (0, 0, 2)
    assert done.stdout.startswith("i2v: 2 ready (")
    told = json.loads(document.stdout)
    assert (told["scaled"], told["workers"], told["stage"]) == (True, [], "i2v")
    assert over.stderr.startswith("error: workers: must be 0 to 64")


def through_proxy(seen):
    """A proxy's answers, without a management API beside it."""
    stage = seen.path.partition("?stage=")[2]
    told = {"stages": {stage: {"workers": {"READY": 2, "UNLOADING": 1}, "pending_requests": 0}}}
    return Answer(200, json.dumps(told).encode()) if seen.path.startswith("/ready") else Answer()


def test_waiting_shows_seconds_and_the_workers_last_line(tmp_path):
    log, now = tmp_path / "model_log.log", iter([0.0, 12.0, 13.0])
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=200)
    with waiting(lambda: log if log.is_file() else None, console, print, lambda: next(now)) as show:
        show("t2i has 0 of 1 workers ready; `cloudvid wait` waits for one")
        log.write_text("2026 [INFO ] W-9000-t2i_1-stdout MODEL_LOG - Loading 3/7\n\n")
        show("t2i has 0 of 1 workers ready")
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", out.getvalue())
    assert "12 s: t2i has 0 of 1 workers ready\n" in shown.replace("\r", "\n") + "\n"
    assert "13 s: t2i has 0 of 1 workers ready | Loading 3/7" in shown


def test_ps_fits_a_narrow_terminal():
    fake = Fake()
    fake.description |= {"model": "stabilityai/stable-diffusion-2-1-base@1234567890abcdef", "device": "cuda:0"}
    with fake_server(fake) as server:
        found = look_at(client_of(server), Stage)
    lines = table(found, 80).splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert lines[3] == "t2i: stabilityai/stable-diffusion-2-1-base@1234567890ab"
    assert "model" in table(found).splitlines()[0]


def test_ps_and_scale_through_a_proxy_name_no_other_port(tmp_path):
    with fake_server(through_proxy) as proxy:
        at_proxy = {"CLOUDVID_SERVER": proxy.url, "CLOUDVID_TOKEN": "t"}
        seen = cloudvid("ps", cwd=tmp_path, environment=at_proxy)
        scaled = cloudvid("scale", "t2i", 2, cwd=tmp_path, environment=at_proxy)
    with fake_server(lambda seen: Answer() if seen.path.startswith("/ping") else Answer(404)) as other:
        uncounted = cloudvid("ps", "--server", other.url, "--token", "t", cwd=tmp_path)
    assert (seen.returncode, scaled.returncode, uncounted.returncode) == (0, 3, 3)
    row = rows("\n".join(seen.stdout.splitlines()[:3]))["t2i"]
    assert (row["workers"], row["queue"]) == ("2 ready, 1 loading", "-")
    remedy = "its management API cannot be asked from here: run this on the server's host"
    assert scaled.stderr.startswith(f"error: {proxy.url} answers, but {remedy}")
    assert f"t2i: {other.url} answers, but {remedy}" in uncounted.stdout


def test_ps_and_doctor_tell_of_restarted_workers(tmp_path):
    fake = Fake()

    def answer(seen):
        told = {"workers": {}, "restarts": {"count": 2, "last": 1_700_000_000}}
        return Answer(200, json.dumps({"stages": {"t2i": told}}).encode()) if "/ready" in seen.path else fake(seen)

    with fake_server(answer) as server:
        seen = cloudvid("ps", cwd=tmp_path, environment=at(server))
        diagnosis = cloudvid("doctor", cwd=tmp_path, environment=at(server))
        document = cloudvid("ps", "--json", cwd=tmp_path, environment=at(server))
    text = "t2i: a worker that had died was restarted 2 times since the server's start, last at 2023-11-1"
    assert text in seen.stdout
    assert f"note     endpoints: {text}" in diagnosis.stdout
    assert [stage["restarts"] for stage in json.loads(document.stdout)["stages"]] == [2, None]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (error(503, "ServerUnavailable", "the model server is not up"), ": the model server is not up"),
        (error(400, "BadRequest", "this port speaks HTTPS"), "400 BadRequest: this port speaks HTTPS"),
        (Answer(404), "/ping answers 404\n"),
    ],
)
def test_wait_and_doctor_say_what_ping_says(answer, text, tmp_path):
    with fake_server(lambda seen: answer) as server:
        waited = cloudvid("wait", "--timeout", 0, cwd=tmp_path, environment=at(server))
        diagnosis = cloudvid("doctor", cwd=tmp_path, environment=at(server))
    assert text in waited.stderr
    assert text in diagnosis.stdout


def test_what_is_beside_a_proxy_is_no_management_api(tmp_path):
    """Its inside port answers with 404 what only TorchServe knows."""
    with fake_server(through_proxy) as proxy, fake_server(lambda seen: error(404, "ResourceNotFound")) as inside:
        at_both = at(proxy) | {"CLOUDVID_MANAGEMENT": inside.url}
        done = cloudvid("wait", "--timeout", 0, cwd=tmp_path, environment=at_both)
    assert (done.returncode, done.stdout) == (0, "both stages are ready\n"), done.stderr


def test_image_without_workers_names_the_command_too(tmp_path):
    refusal = error(503, "ServiceUnavailableException", 'Model "t2i" has no worker to serve inference request.')
    with fake_server(lambda seen: refusal) as server:
        done = cloudvid("image", "a cat", cwd=tmp_path, environment=at(server))
    assert done.stderr == "error: t2i has no workers; start one with `cloudvid scale t2i 1`\n"


def test_a_failed_scale_is_code_3_with_remedy_and_state(tmp_path):
    fake = Fake(new=lambda number: worker(number, "UNLOADING", pid=-1))
    with fake_server(fake) as server:
        done = cloudvid("scale", "i2v", 2, "--timeout", 0, "--json", cwd=tmp_path, environment=at(server))
    assert done.returncode == 3
    told = json.loads(done.stdout)
    assert (told["scaled"], told["ready"], told["loading"]) == (False, 1, 1)
    assert "1 of 2 workers ready after 0 s" in told["error"]
    assert done.stderr.splitlines()[-1] == f"error: {told['error']}"


def test_wait_as_json_says_what_is_ready_or_why_not(tmp_path):
    fake = Fake()
    with fake_server(fake) as server:
        ready = cloudvid("wait", "--json", cwd=tmp_path, environment=at(server))
        fake.workers["t2i"] = []
        not_ready = cloudvid("wait", "--json", "--timeout", 0, cwd=tmp_path, environment=at(server))
        one = cloudvid("wait", "--stage", "i2v", cwd=tmp_path, environment=at(server))
    assert (ready.returncode, json.loads(ready.stdout)["ready"]) == (0, True)
    told = json.loads(not_ready.stdout)
    assert (not_ready.returncode, told["ready"]) == (3, False)
    assert "t2i has no workers; start one" in told["error"]
    assert (one.returncode, one.stdout) == (0, "i2v is ready\n")


def test_no_estimate_comes_with_the_reason(tmp_path):
    fake = Fake(t2i=())
    fake.description["seconds"] = {}
    path = write_scenes(tmp_path / "scenes.json", 1)
    with fake_server(fake) as server:
        done = cloudvid("plan", path, cwd=tmp_path, environment=at(server))
        fake.pending["i2v"] = 1
        busy = cloudvid("plan", path, cwd=tmp_path, environment=at(server))
    away = cloudvid("plan", path, "--server", f"http://127.0.0.1:{closed_port()}", cwd=tmp_path)
    assert "no estimate: t2i has 0 of 0 workers ready; nothing has been measured yet for i2v" in done.stdout
    assert "the workers of i2v are all busy" in busy.stdout
    assert away.stdout.count("nothing answers") == 1


def test_a_server_started_here_is_found_on_any_port(tmp_path):
    with fake_server(Fake()) as server:
        port = server.server_address[1]
        (tmp_path / ".run").mkdir()
        (tmp_path / ".run/server.json").write_text(json.dumps({"pid": os.getpid(), "port": port}))
        arguments = ["ps", "--management", server.url, "--token", "t"]
        found = cloudvid(*arguments, cwd=tmp_path)
        assert found.returncode == 0
        assert "1 ready" in found.stdout
        assert any(seen.path.startswith("/ping?") for seen in server.seen)
        named = cloudvid("wait", "--timeout", 0, "--server", f"http://127.0.0.1:{closed_port()}", cwd=tmp_path)
        assert named.returncode == 3, "a flag comes first"
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    (tmp_path / ".run/server.json").write_text(json.dumps({"pid": int(gone.stdout), "port": port}))
    (tmp_path / ".run/server.log").write_text("started\n\njava: killed\n")
    for command in (("wait", "--timeout", 0), ("image", "a cat")):
        lines = cloudvid(*command, cwd=tmp_path, environment={"CLOUDVID_TOKEN": "t"}).stderr.splitlines()
        assert f"; the server of this folder (port {port}, process {gone.stdout.strip()}) died after 20" in lines[0]
        assert lines[1:] == ["the end of its log:", "  started", "  java: killed"]
    diagnosis = cloudvid("doctor", cwd=tmp_path).stdout
    assert f"address: http://127.0.0.1:{port}: the server of this folder (port {port}, process" in diagnosis
    assert "\n         java: killed\n         -> start it" in diagnosis


def test_the_server_started_last_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    none = cloudvid("wait", "--timeout", 0, cwd=tmp_path).stderr
    assert none.startswith("error: nothing answers at http://127.0.0.1:8080/ping: ")
    assert "no server runs on this machine: `make start`, or name its address" in none
    run_dir = tmp_path / "server/.run"
    run_dir.mkdir(parents=True)
    with fake_server(Fake()) as server:
        record = {"pid": os.getpid(), "port": server.server_address[1]}
        (run_dir / "server.json").write_text(json.dumps(record))
        (run_dir / "key_file.json").write_text(json.dumps({"inference": {"key": "of the server"}}))
        point_to(run_dir)
        for given in ({}, {"CLOUDVID_SERVER": server.url}):
            client = Client(given.get("CLOUDVID_SERVER"))
            assert (client.server.urls[Stage.T2I], client.server.key_file) == (server.url, run_dir / "key_file.json")
            cloudvid("wait", "--timeout", 0, cwd=tmp_path, environment=given)
            assert server.seen[-1].headers["Authorization"] == "Bearer of the server"
    remove_pointer(tmp_path / "other/.run")
    assert Client().server.urls[Stage.T2I] == server.url, "the pointer is not to that folder"
    remove_pointer(run_dir)
    assert Client().server.urls[Stage.T2I] == "http://127.0.0.1:8080"


class Sampler:
    """Looks at both stages again and again, and holds what it sees against what is known to be so.

    `known` has a stage's number of workers while it stays the same, else None.
    """

    def __init__(self, client):
        self.client, self.known = client, dict.fromkeys(Stage, 1)
        self.looks, self.faults = 0, []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _run(self):
        while not self._stop.wait(0.1):
            for stage in Stage:
                before = self.known[stage]
                try:
                    seen = self.client.status(stage, patience=0.1)
                except Exception as error:
                    self.faults.append(repr(error))
                    continue
                self.looks += 1
                if before == self.known[stage] is not None and not (seen.ready == len(seen.workers) == before):
                    self.faults.append((before, seen))


def test_stages_scaled_under_load_lose_nothing(noise_server, tmp_path):
    """Each change is made as a request of that stage reports a step, while others wait for it."""
    scenes = batch(8)
    client = noise_server.client()
    list(render(scenes, client, tmp_path / "undisturbed"))
    picture = (tmp_path / "undisturbed/s0_base_image.png").read_bytes()

    def scale(stage, workers):
        sampler.known[stage] = None
        seen = client.scale(stage, workers, max_workers=64, timeout=200)
        sampler.known[stage] = workers
        assert (seen.ready, len(seen.workers)) == (workers, workers)

    def stop_and_start_t2i():
        scale(Stage.T2I, 0)
        clip = client.image_to_video(picture, num_frames=3, num_inference_steps=2)
        assert clip.model.startswith("noise-i2v"), "the other stage goes on"
        scale(Stage.T2I, 1)

    changes = iter(
        [
            (Stage.I2V, lambda: scale(Stage.I2V, 2)),
            (Stage.T2I, stop_and_start_t2i),
            (Stage.I2V, lambda: scale(Stage.I2V, 1)),
            (Stage.I2V, lambda: scale(Stage.I2V, 0) or scale(Stage.I2V, 1)),
        ]
    )
    change, finished = next(changes), None
    try:
        with Sampler(noise_server.client()) as sampler:
            for event in render(scenes, client, tmp_path / "out", wait=lambda attempt: 0.5):
                is_running = isinstance(event, StageProgress) and event.phase == "denoise" and event.step < event.steps
                if is_running and change and event.stage is change[0]:
                    change[1]()
                    change = next(changes, None)
                finished = event
        assert change is None, "every change was made"
        assert (finished.done, finished.failed) == (8, 0)
        assert pictures_and_clips(tmp_path / "out") == pictures_and_clips(tmp_path / "undisturbed")
        assert sampler.faults == []
        assert sampler.looks > 10
    finally:
        for stage in Stage:
            client.scale(stage, 1, max_workers=64, timeout=200)


def test_a_dead_worker_is_never_shown_as_ready(noise_server):
    client = noise_server.client()
    (pid,) = noise_server.pids("t2i")
    os.kill(pid, signal.SIGKILL)
    psutil.Process(pid).wait(timeout=30) if psutil.pid_exists(pid) else None
    while psutil.pid_exists(pid):
        pass
    seen = client.status(Stage.T2I)
    assert seen.ready == 0
    assert seen.description is None
    client.wait_until_ready(timeout=120)
    assert client.status(Stage.T2I).ready == 1
    assert client.server.with_restarts(client.status(Stage.T2I)).restarts == 1


def test_the_commands_work_with_the_real_server(server, tmp_path):
    run = {"cwd": tmp_path, "environment": server.environment}
    seen = cloudvid("ps", **run)
    assert seen.returncode == 0, seen.stderr
    assert [row["workers"] for row in rows(seen.stdout).values()] == ["1 ready", "1 ready"]
    assert rows(seen.stdout)["i2v"]["model"].startswith("cloudvid-tiny-i2v@")
    scaled = cloudvid("scale", "t2i", 1, "--max-workers", 64, "--json", **run)
    assert json.loads(scaled.stdout)["scaled"], scaled.stderr
    waited = cloudvid("wait", "--json", **run)
    assert json.loads(waited.stdout)["ready"], waited.stderr


@pytest.mark.slow
def test_a_worker_that_cannot_load_is_explained_and_rolled_back(tmp_path):
    model = tmp_path / "model"
    model.mkdir()

    def change(handlers):
        with_noise(handlers)
        with (handlers / "i2v.yaml").open("a") as config:
            config.write(f"  directory: {model}\n")

    store = build(tmp_path / "archives", change)
    with running_server(tmp_path / "run", {"i2v": model}, store) as running:
        client = running.client()
        model.rename(tmp_path / "away")
        done = cloudvid("scale", "i2v", 2, cwd=tmp_path, environment=running.environment)
        assert done.returncode == 3
        first, *_, last = done.stderr.splitlines()
        assert "died 2 times while loading: SettingsError: model directory" in first
        assert last == "error: i2v is back to 1 worker"
        client.check_ready(Stage.I2V)
        assert client.server.ping(Stage.I2V) == 200
        (tmp_path / "away").rename(model)
        assert client.scale(Stage.I2V, 2, timeout=200).ready == 2
