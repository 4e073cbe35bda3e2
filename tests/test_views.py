"""What a run shows, and `plan`, `init`, `schema` and `inspect`."""

import io
import json
import os
import re
import subprocess
import sys

import jsonschema
import pytest
from rich.console import Console

from cloudvid import parse_scenes, render
from cloudvid.batch.events import (
    BatchFinished,
    BatchStarted,
    SceneCancelled,
    SceneFailed,
    StageDone,
    StageProgress,
    StageRetried,
)
from cloudvid.batch.media import read_recipe
from cloudvid.batch.scenes import seed_of
from cloudvid.cli.run import resume_command
from cloudvid.cli.status import said_once
from cloudvid.cli.views import JsonView, LiveView, PlainView, QuietView
from cloudvid.endpoints.errors import NotReady
from cloudvid_schema.protocol import Stage
from support import ROOT
from support.command_line import cloudvid, command, run
from support.fake_server import error
from support.fake_torchserve import fake_torchserve
from support.folders import scenes, write_scenes
from support.loopback import client_of, closed_port, connection


@pytest.fixture(scope="module")
def fake():
    with fake_torchserve() as server:
        yield server


def test_json_prints_events_by_schema_and_text_on_stderr(fake, tmp_path):
    scene_file = write_scenes(tmp_path / "scenes.json", 2)
    done = cloudvid("run", scene_file, "--output-dir", "out", "--json", *connection(fake), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    validator = jsonschema.Draft202012Validator(json.loads((ROOT / "docs/events.schema.json").read_text()))
    for event in events:
        validator.validate(event)
    assert [events[0]["event"], events[-1]["event"]] == ["batch_started", "batch_finished"]
    assert {"stage_started", "stage_progress", "stage_done", "scene_done"} <= {event["event"] for event in events}
    assert events[-1]["done"] == 2
    assert "2 of 2 scenes done" in done.stderr


def test_quiet_prints_paths_and_nothing_else(fake, tmp_path):
    scene_file = write_scenes(tmp_path / "scenes.json", 1)
    done = cloudvid("run", scene_file, "--output-dir", "out", "-q", *connection(fake), cwd=tmp_path)
    assert done.stdout.splitlines() == ["out/s0_base_image.png", "out/s0_video.mp4"]
    assert done.stderr == ""


@pytest.mark.parametrize("view", [JsonView, QuietView, PlainView])
def test_an_interrupt_leaves_no_half_of_a_line(view, fake, tmp_path, monkeypatch):
    class Interrupted(io.StringIO):
        def write(self, text):
            super().write(text)
            raise KeyboardInterrupt

    events = list(render(parse_scenes(scenes(1)), client_of(fake), tmp_path / "out"))
    (done,) = [event for event in events if isinstance(event, StageDone) and event.stage is Stage.I2V]
    monkeypatch.setattr("sys.stdout", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        view(sys.stdout).show(done)
    assert sys.stdout.getvalue().endswith("\n")


@pytest.mark.parametrize(
    ("name", "encoding", "shown"),
    [(b"caf\xe9", "utf-8:strict", r"caf\udce9"), ("日本".encode(), "ascii", r"\u65e5\u672c")],
)
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_what_a_console_cannot_show_ends_no_batch(options, name, encoding, shown, fake, tmp_path):
    folder, path = os.fsdecode(os.fsencode(tmp_path) + b"/" + name), write_scenes(tmp_path / "scenes.json", 1)
    done = run(
        command("run", path, "--output-dir", folder, *connection(fake), *options),
        PYTHONIOENCODING=encoding,
    )
    assert done.returncode == 0, done.stderr
    assert f"{shown}/s0_video.mp4" in done.stdout
    if options == ("--json",):
        paths = [event["path"] for line in done.stdout.splitlines() if "path" in (event := json.loads(line))]
        assert paths == [f"{folder}/s0_base_image.png", f"{folder}/s0_video.mp4"]


@pytest.mark.parametrize(
    ("to", "said"),
    [
        (">&-", ""),
        ("2>&-", ""),
        (">/dev/full", "warning: <stdout> cannot be written (No space left on device); the batch continues\n"),
    ],
)
def test_an_output_that_nobody_takes_ends_no_batch(to, said, fake, tmp_path):
    path, folder = write_scenes(tmp_path / "scenes.json", 1), tmp_path / "out"
    arguments = command("run", path, "--output-dir", folder, *connection(fake))
    done = run(["sh", "-c", f'exec "$@" {to}', "sh", *arguments])
    assert (done.returncode, "Traceback" in done.stderr, done.stderr.startswith(said)) == (0, False, True), done.stderr
    assert (tmp_path / "out/s0_video.mp4").is_file()


def test_wait_says_what_for(tmp_path):
    with fake_torchserve() as server:
        server.states[Stage.T2I] = "WORKER_STARTED"
        command = [sys.executable, "-m", "cloudvid.cli", "wait", "--timeout", "60", *connection(server)]
        with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
            first = process.stderr.readline()
            server.states[Stage.T2I] = "READY"
    assert first == "waiting: t2i has 0 of 1 workers ready\n"
    assert process.returncode == 0


def test_a_wait_is_reported_when_its_reason_changes(capsys):
    now = [0.0]
    at_once, later = said_once(), said_once(10.0, lambda: now[0])
    for text in ("nothing answers", "nothing answers", "no worker"):
        at_once(NotReady(text))
        later(NotReady(text))
    assert capsys.readouterr().err == "waiting: nothing answers\nwaiting: no worker\n"
    now[0] = 10.0
    later(NotReady("no worker"))
    later(NotReady("no worker"))
    assert capsys.readouterr().err == "waiting: no worker\n"


def test_after_a_failure_the_exact_command_that_resumes_is_printed(tmp_path):
    scene_file = write_scenes(tmp_path / "a scene file.json", 2)
    with fake_torchserve(fault=lambda stage, body: error(422, "x", "y") if b"scene 0" in body else None) as server:
        done = cloudvid("run", scene_file, "--force", "--output-dir", "out", *connection(server), cwd=tmp_path)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1].strip()
    assert last == f"cloudvid run '{scene_file}' --output-dir out --server {server.url} --management {server.url}"


def test_the_command_that_resumes_holds_no_secret():
    argv = ["/x/cloudvid", "run", "a b.json", "--token", "secret", "--token=secret", "--force", "-q"]
    assert resume_command(argv) == "cloudvid run 'a b.json' -q"


def test_the_bars_move_with_the_steps_above_the_lines(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")  # on one that cannot move its cursor there are no bars
    screen = io.StringIO()
    view = LiveView(Console(file=screen, force_terminal=True, width=120), on_clock=False)
    with fake_torchserve() as server:
        client = client_of(server)
        for event in render(parse_scenes(scenes(2)), client, tmp_path):
            view.show(event)
    shown = screen.getvalue()
    assert "s/step" in shown
    assert "denoise 1/2" in shown
    assert re.search(r"s1_video.mp4  .* seed \d+", shown)
    assert "2 of 2 scenes done" in shown


def test_a_long_id_leaves_room_for_bar_and_times(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    screen = io.StringIO()
    view = LiveView(Console(file=screen, force_terminal=True, width=80, color_system=None), on_clock=False)
    view.show(BatchStarted(scenes=2, output_dir="out"))
    view.show(StageProgress(scene="x" * 95, stage=Stage.I2V, phase="denoise", step=25, steps=25))
    view.close()
    shown = screen.getvalue()
    assert re.search(r"clip +━{7}.* 0/2 denoise 25/25.* x{8,}…", shown), shown


def retried(scene, stage, **more):
    message = "nothing answers at http://a/ping: Connection refused"
    return StageRetried(scene=scene, stage=stage, error="Unreachable", message=message, wait_seconds=1.0, **more)


def test_an_absent_server_is_one_line_per_stage(capsys):
    view = PlainView(sys.stdout)
    view.show(BatchStarted(scenes=3, output_dir="out"))
    for scene in ("a", "b", "a", "a"):
        view.show(retried(scene, Stage.I2V, patience=900.0))
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"nothing answers at .*: Connection refused; waiting up to 900 s since \d\d:\d\d:\d\d", line)
    for scene in ("a", "b"):
        view.show(StageProgress(scene=scene, stage=Stage.I2V, phase="denoise", step=1, steps=25))
    view.show(retried("a", Stage.I2V, patience=900.0))
    view.show(retried("a", Stage.I2V))
    assert [line[:7] for line in capsys.readouterr().err.splitlines()] == ["nothing", "again i"]


def test_a_waiting_scene_shows_no_step(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    screen = io.StringIO()
    view = LiveView(Console(file=screen, force_terminal=True, width=120, color_system=None), on_clock=False)
    view.show(BatchStarted(scenes=1, output_dir="out"))
    view.show(StageProgress(scene="a", stage=Stage.I2V, phase="denoise", step=8, steps=8))
    view.show(retried("a", Stage.I2V, patience=900.0))
    view.close()
    assert "waiting to send it again" in screen.getvalue().rpartition("denoise 8/8")[2]


def test_lines_of_a_piped_run_have_time_and_count(fake, tmp_path):
    scene_file = write_scenes(tmp_path / "scenes.json", 2)
    done = cloudvid("run", scene_file, "--output-dir", "out", *connection(fake), cwd=tmp_path)
    lines = [line for line in done.stdout.splitlines() if "_video.mp4" in line]
    assert all(re.match(r"\d\d:\d\d:\d\d  [12]/2  out/s\d_video.mp4  ", line) for line in lines), lines
    assert re.search(r"2 of 2 scenes done \(\d+ s\); open out/index.html$", done.stdout)


def test_the_end_names_the_scenes_that_failed(tmp_path):
    out = io.StringIO()
    view = PlainView(out)
    view.show(BatchStarted(scenes=30, output_dir=str(tmp_path)))
    for index in range(22):
        view.show(SceneFailed(scene=f"s{index}", stage=Stage.T2I, error="Rejected", message="no"))
    view.show(SceneCancelled(scene="c", stage=Stage.T2I))
    view.show(BatchFinished(scenes=30, done=7, skipped=0, failed=22, cancelled=1, requests=30, seconds=1.0))
    failed, cancelled, last = out.getvalue().splitlines()
    assert failed == "failed scenes: " + ", ".join(f"s{index}" for index in range(20)) + " and 2 more"
    assert cancelled == "cancelled scenes: c"
    assert last == "7 of 30 scenes done, 22 failed, 1 cancelled (1 s)", "there is no index.html to open"


def test_elsewhere_a_long_clip_gets_a_line_now_and_then(tmp_path):
    now = [0.0]
    out = io.StringIO()
    view = PlainView(out, clock=lambda: now[0])
    with fake_torchserve() as server:
        client = client_of(server)
        for event in render(parse_scenes(scenes(5)), client, tmp_path):
            now[0] += 20.0
            view.show(event)
    lines = [line for line in out.getvalue().splitlines() if line.startswith("  ")]
    pattern = r"  s\d: (t2i|i2v) (denoise|decode|encode) \d/\d(, \d+\.\d\d s/step)?(, \d:\d\d:\d\d left of the batch)?"
    assert all(re.fullmatch(pattern, line) for line in lines), lines
    assert any("s/step" in line for line in lines)
    assert any(line.endswith(" left of the batch") for line in lines)


def test_plan_says_what_would_run_and_why_and_how_long(fake, tmp_path):
    document = scenes(3)
    scene_file = tmp_path / "scenes.json"
    scene_file.write_text(json.dumps(document[:2]))
    assert cloudvid("run", scene_file, "--output-dir", "out", *connection(fake), cwd=tmp_path).returncode == 0
    document[1]["i2v_params"] = {"num_inference_steps": 5, "width": 128, "height": 64, "fit": "pad"}
    document[0]["t2i_params"]["seed"] = 3
    document[0]["scene_desc"] = "another scene"
    scene_file.write_text(json.dumps(document))
    before = fake.posts.total()
    done = cloudvid("plan", scene_file, "--output-dir", "out", *connection(fake), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert fake.posts.total() == before
    lines = done.stdout.splitlines()
    assert lines[:6] == [
        f"s0  t2i  run: parameters changed (seed {seed_of(Stage.T2I, 's0')} -> 3, prompt), 2 steps",
        "s0  i2v  run: picture changed, 2 steps",
        "s1  t2i  skip: there and intact",
        "s1  i2v  run: parameters changed (width, height, fit, num_inference_steps 2 -> 5), 5 steps",
        "s2  t2i  run: new, 2 steps",
        "s2  i2v  run: new, 2 steps",
    ]
    assert lines[6] == "warning: s1: the picture is 64×64, the clip 128×64: it will be padded"
    assert lines[7].startswith("5 of 6 files to make, 13 steps; about ")


def test_plan_looks_only_at_the_scenes_it_is_told(fake, tmp_path):
    write_scenes(tmp_path / "scenes.json", 3)
    done = cloudvid("plan", "--only", "s1", *connection(fake), cwd=tmp_path)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["s1", "s1", "2"]
    refused = cloudvid("plan", "--only", "s7", *connection(fake), cwd=tmp_path)
    assert (refused.returncode, "no scene has the id 's7'" in refused.stderr) == (2, True)


def test_plan_without_a_server_says_that_there_is_no_estimate(tmp_path):
    scene_file = write_scenes(tmp_path / "scenes.json", 1)
    done = cloudvid("plan", scene_file, "--server", f"http://127.0.0.1:{closed_port()}", cwd=tmp_path)
    assert done.returncode == 0
    assert "2 of 2 files to make, 4 steps; no estimate" in done.stdout


def test_scenes_of_another_file_in_the_folder_are_reported(fake, tmp_path):
    document = scenes(7)
    (tmp_path / "old.json").write_text(json.dumps(document[:6]))
    (tmp_path / "new.json").write_text(json.dumps(document[5:]))
    arguments = ("--output-dir", "out", *connection(fake))
    assert "note" not in cloudvid("run", "old.json", *arguments, cwd=tmp_path).stderr
    for options in (("run", "new.json", *arguments), ("gallery", "new.json", "--output-dir", "out")):
        done = cloudvid(*options, cwd=tmp_path)
        assert done.stderr.startswith(
            "note: out also has files of scenes that are not in this scene file (s0, s1, s2, ...)"
        )
    assert "note: out also has" in cloudvid("plan", "new.json", *arguments, cwd=tmp_path).stdout


def test_a_gallery_is_made_only_of_a_folder_that_exists(tmp_path):
    done = cloudvid("gallery", write_scenes(tmp_path / "scenes.json", 1), "--output-dir", "typo", cwd=tmp_path)
    assert (done.returncode, "typo is not a folder" in done.stderr, (tmp_path / "typo").exists()) == (2, True, False)


def test_init_writes_a_valid_example_and_overwrites_nothing(tmp_path):
    assert cloudvid("init", "mine.json", cwd=tmp_path).returncode == 0
    assert cloudvid("validate", "mine.json", cwd=tmp_path).returncode == 0
    again = cloudvid("init", "mine.json", cwd=tmp_path)
    assert again.returncode == 2
    assert "is there already; --force replaces it" in again.stderr
    assert cloudvid("init", "mine.json", "--force", cwd=tmp_path).returncode == 0


def test_schema_prints_the_schema_of_the_documents(tmp_path):
    done = cloudvid("schema", cwd=tmp_path)
    assert json.loads(done.stdout) == json.loads((ROOT / "docs/scene-file.schema.json").read_text())


def test_inspect_shows_the_recipe_and_a_repeating_scene(server, tmp_path):
    document = [
        {
            "id": "a",
            "scene_desc": 'é "quoted" \\ ; # = \n line',
            "motion_desc": "slow",
            "t2i_params": {"width": 136, "height": 72, "num_inference_steps": 2, "guidance_scale": 0.0},
            "i2v_params": {"num_frames": 3, "num_inference_steps": 1, "fit": "pad"},
        }
    ]
    (tmp_path / "scenes.json").write_text(json.dumps(document))
    run = ["run", "scenes.json", "--output-dir", "out"]
    assert cloudvid(*run, cwd=tmp_path, environment=server.environment).returncode == 0
    recipe = json.loads(cloudvid("inspect", "out/a_video.mp4", cwd=tmp_path).stdout)
    assert recipe["parameters"]["width"] == 128
    assert recipe["metadata"] == {"motion_desc": "slow"}
    assert recipe["picture"]["recipe"]["parameters"]["prompt"] == document[0]["scene_desc"]
    assert recipe["picture"]["recipe"] == json.loads(cloudvid("inspect", "out/a_base_image.png", cwd=tmp_path).stdout)
    assert {"cloudvid", "diffusers", "torch"} <= recipe["versions"].keys()
    scene = cloudvid("inspect", "out/a_video.mp4", "--as-scene", cwd=tmp_path)
    assert (scene.returncode, scene.stderr) == (0, "")
    (tmp_path / "again.json").write_text(scene.stdout)
    run = ["run", "again.json", "--output-dir", "again"]
    assert cloudvid(*run, cwd=tmp_path, environment=server.environment).returncode == 0
    for name in ("a_base_image.png", "a_video.mp4"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_no_metadata_leaves_the_recipe_out_of_both_files(server, tmp_path):
    scene_file = write_scenes(tmp_path / "scenes.json", 1)
    done = cloudvid(
        "run", scene_file, "--output-dir", "out", "--no-metadata", cwd=tmp_path, environment=server.environment
    )
    assert done.returncode == 0, done.stderr
    for name in ("s0_base_image.png", "s0_video.mp4"):
        assert read_recipe(tmp_path / "out" / name) is None
        assert b"scene 0" not in (tmp_path / "out" / name).read_bytes()
    assert cloudvid("inspect", "out/s0_video.mp4", cwd=tmp_path).returncode == 1


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "x.png is neither a PNG nor an MP4 file"),
        (b"# CloudVid\n", "x.png is neither a PNG nor an MP4 file"),
        (b"\x89PNG\r\n\x1a\n", "x.png is no whole PNG or MP4 file: cut at byte 8"),
        (b"\0\0\0\x08ftyp\xff\xff\xff\xffmoov", "x.png is no whole PNG or MP4 file: box 'moov' at byte 8"),
    ],
)
def test_inspect_of_what_is_no_whole_file_is_one_line(data, said, tmp_path):
    (tmp_path / "x.png").write_bytes(data)
    done = cloudvid("inspect", "x.png", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {said}")
    assert done.stderr.count("\n") == 1
