"""The container's entry point as a plain process, in a folder laid out as the image is."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cloudvid.cli import app
from deploy import container
from deploy.exporter import EXPORTER
from support import ROOT
from support.fake_hub import fake_hub
from support.loopback import free_port

SCENE = {
    "id": "pond",
    "scene_desc": "a paper boat on a pond",
    "t2i_params": {"width": 128, "height": 64, "num_inference_steps": 2},
    "i2v_params": {"num_frames": 4, "num_inference_steps": 2, "fps": 6},
}


def allowed() -> list[str]:
    """What `.dockerignore` lets into a build."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [line[1:] for line in lines if line.startswith("!")]


@pytest.fixture
def app_folder(tmp_path):
    """/app of the image, without models and archives."""
    app = tmp_path / "app"
    for pattern in allowed():
        for source in ROOT.glob(pattern):
            target = app / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
    for name in ("input_data", "output_data", "models", ".run", "model_store"):
        (app / name).mkdir()
    return app


def start(app_folder, *arguments, **environment):
    """The entry point, in a session of its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CLOUDVID_", "HF_", "PROFILE"))}
    return subprocess.Popen(
        [sys.executable, "-m", "deploy.container", *arguments],
        env=clean
        | {"PYTHONPATH": f"{app_folder}:{app_folder / 'client'}", "TMPDIR": str(app_folder.parent)}
        | environment,
        cwd=app_folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(app_folder, *arguments, **environment):
    process = start(app_folder, *arguments, **environment)
    stdout, stderr = process.communicate(timeout=300)
    return process.returncode, stdout, stderr


def test_without_a_scene_file_it_says_where_to_put_them(app_folder):
    (app_folder / "input_data/.hidden.json").write_text("[]")
    (app_folder / "input_data/readme.txt").write_text("")
    code, _, stderr = run(app_folder)
    assert code == 2
    assert f"no scene file: {app_folder}/input_data holds no *.json; mount a folder of them" in stderr


def test_no_server_starts_if_every_scene_file_is_faulty(app_folder):
    (app_folder / "input_data/a.json").write_text("{")
    (app_folder / "input_data/b.json").write_text(json.dumps([SCENE | {"id": "a/b"}]))
    code, _, stderr = run(app_folder)
    assert code == 2
    assert "error: a.json: " in stderr
    assert "error: b.json: " in stderr
    assert not list((app_folder / ".run").iterdir())


def test_unwritable_outputs_name_the_user_and_the_remedy(app_folder):
    (app_folder / "input_data/a.json").write_text(json.dumps([SCENE]))
    (app_folder / "output_data").rmdir()
    code, _, stderr = run(app_folder)
    assert code == 2
    assert f"user {os.getuid()}:{os.getgid()} cannot write to {app_folder}/output_data" in stderr
    assert "--user UID:GID" in stderr


def test_a_profile_that_is_none_is_refused_before_anything_starts(app_folder):
    (app_folder / "input_data/a.json").write_text(json.dumps([SCENE]))
    for arguments in ([], ["serve", "t2i"], ["weights"]):
        code, _, stderr = run(app_folder, *arguments, PROFILE="huge")
        assert (code, stderr) == (2, "error: PROFILE must be one of auto, demo, real, tiny, got 'huge'\n")


def test_any_other_word_is_a_command_of_cloudvid(app_folder):
    (app_folder / "input_data/a.json").write_text(json.dumps([SCENE]))
    assert run(app_folder, "validate", "input_data/a.json") == (0, "input_data/a.json: 1 scene, no faults\n", "")
    code, _, stderr = run(app_folder, "bash")
    assert code == 2
    assert "No such command 'bash'" in stderr
    code, stdout, _ = run(app_folder, "--help")
    assert code == 0
    assert "cloudvid-container serve [t2i|i2v]" in stdout


def test_no_command_of_cloudvid_is_hidden_by_the_containers_own():
    commands = {command.name for command in app.registered_commands}
    assert not commands & set(container._ACTIONS)


@pytest.fixture
def executed(monkeypatch, tmp_path):
    """The commands that the entry point becomes."""
    commands = []

    def become(program, command):
        commands.append(command[1:])
        raise SystemExit

    monkeypatch.setattr(os, "execv", become)
    monkeypatch.setattr(container, "_RUN", tmp_path / "run")
    monkeypatch.delenv("PROFILE", raising=False)
    return commands


def test_serve_and_proxy_run_deploys_programs_with_their_options(executed, tmp_path):
    for arguments in (
        ["serve"],
        ["serve", "i2v", "--port", "8090", "--run-dir", str(tmp_path / "x")],
        ["proxy", "--a"],
    ):
        with pytest.raises(SystemExit):
            container.main(arguments)
    server, proxy = ["-m", "deploy.server"], ["-m", "deploy.proxy"]
    both, one, before = executed
    assert both == [*server, "serve", "--profile", "auto", "--run-dir", str(tmp_path / "run")]
    expected = ["--stage", "i2v", "--profile", "auto", "--run-dir", str(tmp_path / "x"), "--port", "8090"]
    assert one == [*server, "serve", *expected]
    assert before == [*proxy, "--listen", "0.0.0.0:8443", "--a"]


def test_the_run_folder_never_holds_logs_or_clips(executed, tmp_path):
    for _ in range(2):
        with pytest.raises(SystemExit):
            container.main(["serve"])
        for name in ("logs", "tmp"):
            folder = (tmp_path / "run" / name).readlink()
            assert folder.is_dir()
            assert tmp_path not in folder.parents
            shutil.rmtree(folder.parent / name)


class _Exporter(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_):
        """Silent."""


def test_health_is_that_of_every_server_that_runs_here(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(container, "_RUN", tmp_path)
    assert container.main(["health"]) == 1
    assert "no server has started here" in capsys.readouterr().out
    port = free_port()
    (tmp_path / "once").mkdir()
    (tmp_path / "once/server.json").write_text(json.dumps({"pid": 1, "port": port}))
    assert container.main(["health"]) == 1, "nothing listens yet"
    with ThreadingHTTPServer(("127.0.0.1", port + EXPORTER), _Exporter) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        for status, code in ((503, 1), (200, 0)):
            server.status = status
            assert container.main(["health"]) == code
            assert container.main(["health", f"http://127.0.0.1:{port + EXPORTER}/ready"]) == code
        server.shutdown()


@pytest.fixture
def rendering(monkeypatch, tmp_path):
    """The loop over files with a stand-in for `cloudvid`, which ends with the code that is the file's name."""
    fake = tmp_path / "cloudvid"
    fake.write_text('#!/bin/sh\necho "$@" >> "$(dirname "$0")/calls"\nexit "$(basename "$2" .json)"\n')
    fake.chmod(0o755)
    monkeypatch.setattr(container, "_CLOUDVID", str(fake))
    before = signal.getsignal(signal.SIGTERM)
    yield lambda *arguments: container.main([container._FILES, *arguments])
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("code", "files", "expected"),
    [("0", ["0", "0"], 0), ("0", ["1", "0"], 1), ("2", ["0", "1"], 2), ("0", ["0", "2", "1"], 2), ("2", ["0"], 2)],
)
def test_the_worst_exit_code_counts_and_no_failure_stops_another(code, files, expected, rendering, tmp_path):
    assert rendering(code, "--force", "--", *(f"{name}.json" for name in files)) == expected
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.split()[1] for call in calls] == [f"{name}.json" for name in files]
    folders = [str(ROOT / "output_data" / name) for name in files]
    assert [call.split()[3] for call in calls] == folders
    assert all(call.endswith("--force") for call in calls)


@pytest.mark.parametrize("code", [3, 130])
def test_without_a_server_it_names_the_files_not_begun(code, rendering, capfd):
    assert rendering("0", "--", f"{code}.json", "0.json", "1.json") == code
    assert "not begun: 0.json, 1.json" in capfd.readouterr().err


def processes_in(folder):
    """Command lines of the processes that were started in this folder or below it."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                place, command = (process / "cwd").readlink(), (process / "cmdline").read_bytes()
            except OSError:
                continue
            if folder == place or folder in place.parents:
                found.append(command)
    return found


@pytest.fixture
def whole(app_folder, model_store, tiny_models):
    """/app of the image with archives and tiny models, and three scene files, one of which has a fault."""
    shutil.copytree(model_store, app_folder / "model_store", dirs_exist_ok=True)
    (app_folder / "models").rmdir()
    (app_folder / "models").symlink_to(ROOT / "models")
    for name in ("first", "second"):
        (app_folder / f"input_data/{name}.json").write_text(json.dumps([SCENE]))
    (app_folder / "input_data/broken.json").write_text("{")
    return app_folder


@pytest.mark.slow
def test_the_whole_job_handles_every_file_and_sigterm(whole):
    process = start(whole, PROFILE="tiny")
    for line in process.stdout:
        if line.startswith("second.json -> "):
            process.send_signal(signal.SIGTERM)
            break
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "error: broken.json: " in stderr
    assert not processes_in(whole)
    assert not list((whole / ".run").iterdir()), "no key, no log"
    code, stdout, stderr = run(whole, "--quiet", PROFILE="tiny")
    assert code == 2, f"the broken one's: {stderr}"
    assert not processes_in(whole)
    for name in ("first", "second"):
        made = {path.name for path in (whole / f"output_data/{name}").iterdir()}
        assert {"pond_base_image.png", "pond_video.mp4", "manifest.jsonl", "index.html"} <= made
    assert "output_data/first/pond_video.mp4" not in stdout, "what was done before is not made again"
    assert "output_data/second/pond_video.mp4" in stdout


@pytest.mark.slow
def test_weights_fetches_the_real_models_where_no_profile_is_named(app_folder, tiny_models):
    names = {
        "t2i": "stabilityai/stable-diffusion-2-1-base",
        "i2v": "stabilityai/stable-video-diffusion-img2vid-xt",
    }
    with fake_hub({names[stage]: folder for stage, folder in tiny_models.items()}) as hub:
        code, stdout, stderr = run(app_folder, "weights", HF_ENDPOINT=hub.url, HF_HOME=str(app_folder / "models"))
    assert code == 0, stderr
    for stage, name in names.items():
        assert f"{stage}: {name}@" in stdout
        assert list((app_folder / "models/hub").glob(f"models--{name.replace('/', '--')}/snapshots/*/model_index.json"))
