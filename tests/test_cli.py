"""The command line: what is printed, what is written, and the exit codes."""

import json
import re
import signal
import subprocess
import sys
import threading

import pytest
import typer
from PIL import Image

from cloudvid import __version__
from cloudvid.cli import app, main
from cloudvid.cli.options import range_of
from cloudvid_schema.parameters import ImageToVideoParameters, TextToImageOptions
from support.command_line import cloudvid, command, environment
from support.fake_server import PICTURE, Answer, error, fake_server, workers
from support.fake_torchserve import fake_torchserve
from support.loopback import closed_port, connection
from support.movies import read_mp4
from test_scenes import BAD

SCENES = [
    {
        "id": f"scene_{index}",
        "scene_desc": f"picture {index}",
        "t2i_params": {"width": 128, "height": 64, "num_inference_steps": 2, "guidance_scale": index * 2.0},
        "i2v_params": {"num_frames": 2 + index, "num_inference_steps": 1, "fps": 5 + index},
    }
    for index in range(2)
]


@pytest.fixture
def scene_file(tmp_path):
    path = tmp_path / "scenes.json"
    path.write_text(json.dumps(SCENES))
    return path


def test_run_writes_a_picture_and_a_clip_for_each_scene(server, scene_file, tmp_path):
    done = cloudvid("run", scene_file, "--output-dir", "out", cwd=tmp_path, environment=server.environment)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 scenes done" in done.stdout
    assert "whose weights are random" in done.stdout
    for index in range(2):
        with Image.open(tmp_path / f"out/scene_{index}_base_image.png") as image:
            assert image.size == (128, 64)
        frames, fps, _ = read_mp4(tmp_path / f"out/scene_{index}_video.mp4")
        assert (frames.shape, fps) == ((2 + index, 64, 128, 3), 5 + index)
    made = {f"scene_{index}_{kind}" for index in range(2) for kind in ("base_image.png", "video.mp4")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == made | {
        ".cloudvid.lock",
        "index.html",
        "manifest.jsonl",
    }


def test_run_takes_the_older_spelling(server, scene_file, tmp_path):
    done = cloudvid(
        "run", "--json_file", scene_file, "--output_dir", "out", cwd=tmp_path, environment=server.environment
    )
    assert done.returncode == 0, done.stderr


def test_image_and_video_take_the_schemas_parameters_as_flags(server, tmp_path):
    done = cloudvid(
        "image",
        "a cat",
        "-o",
        "a.png",
        "--width",
        64,
        "--height",
        64,
        "--num-inference-steps",
        1,
        "--seed",
        3,
        cwd=tmp_path,
        environment=server.environment,
    )
    assert done.returncode == 0, done.stderr
    assert "a.png" in done.stdout
    assert "seed 3" in done.stdout
    done = cloudvid(
        "video",
        "a.png",
        "-o",
        "a.mp4",
        "--num-frames",
        3,
        "--num-inference-steps",
        1,
        "--fit",
        "pad",
        cwd=tmp_path,
        environment=server.environment,
    )
    assert done.returncode == 0, done.stderr
    assert len(read_mp4(tmp_path / "a.mp4")[0]) == 3


def test_wait_says_that_both_stages_are_ready(server, tmp_path):
    done = cloudvid("wait", "--timeout", 30, cwd=tmp_path, environment=server.environment)
    assert (done.returncode, done.stdout) == (0, "both stages are ready\n")


def test_a_wrong_token_is_one_line_and_exit_code_3(server, scene_file, tmp_path):
    done = cloudvid("run", scene_file, "--server", server.url, "--token", "wrong", cwd=tmp_path)
    assert done.returncode == 3
    assert done.stderr.startswith(f"error: {server.url}/ping refuses the given token: Token Authorization failed")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("is_option", "sent"), [(True, "Bearer k"), (False, None)])
def test_an_environments_key_file_is_for_this_machine(is_option, sent, tmp_path):
    path = tmp_path / "key_file.json"
    path.write_text(json.dumps({"inference": {"key": "k"}, "management": {"key": "m"}}))
    with fake_server(lambda seen: error(400, "InvalidKeyException")) as server:
        other = server.url.replace("127.0.0.1", "127.1")  # an address that is_local does not know
        arguments = ["image", "a cat", "--server", other, *(["--key-file", path] if is_option else [])]
        done = cloudvid(*arguments, cwd=tmp_path, environment={} if is_option else {"CLOUDVID_KEY_FILE": str(path)})
    assert done.returncode == 3
    assert ("leave this machine only for addresses that are" in done.stderr) is not is_option
    assert {seen.headers.get("Authorization") for seen in server.seen} == {sent}
    assert ("unencrypted" in done.stderr) is is_option


def test_a_token_that_goes_out_unencrypted_is_noted(tmp_path):
    port = closed_port()
    for host, is_noted in (("http://127.1", True), ("https://127.1", False), ("http://127.0.0.1", False)):
        done = cloudvid("wait", "--timeout", 0, "--server", f"{host}:{port}", "--token", "secret", cwd=tmp_path)
        note = f"note: the token and all pictures go to {host}:{port} unencrypted; use https:// if you can\n"
        assert (note in done.stderr) is is_noted
        assert "secret" not in done.stderr


def test_the_key_file_of_a_server_started_here_is_found(server, tmp_path):
    (tmp_path / ".run").symlink_to(server.process.run_dir)
    assert cloudvid("wait", "--server", server.url, "--timeout", 5, cwd=tmp_path).returncode == 0


def test_an_absent_server_is_one_line_and_code_3(scene_file, tmp_path):
    url = f"http://127.0.0.1:{closed_port()}"
    done = cloudvid("run", scene_file, "--server", url, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (3, f"error: nothing answers at {url}/ping: Connection refused\n")


def test_a_server_not_ready_is_one_line_and_code_3(scene_file, tmp_path):
    answer = workers("LOADING")
    with fake_server(lambda seen: answer if seen.path.startswith("/models/") else Answer()) as fake:
        arguments = connection(fake)
        done = cloudvid("run", scene_file, *arguments, cwd=tmp_path)
    assert done.returncode == 3
    assert done.stderr == "error: t2i has 0 of 1 workers ready; `cloudvid wait` waits for one\n"


def test_one_scenes_failure_stops_no_other_with_code_1(scene_file, tmp_path):
    refuse = error(422, "InvalidParameters", "no")
    with fake_torchserve(fault=lambda stage, body: refuse if b"picture 0" in body else None) as fake:
        arguments = [*connection(fake), "--output-dir", "out"]
        done = cloudvid("run", scene_file, *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert "failed: scene_0: t2i answers 422 InvalidParameters: no" in done.stderr
    assert "1 of 2 scenes done, 1 failed" in done.stdout
    assert (tmp_path / "out/scene_1_video.mp4").is_file()


def test_an_invalid_scene_file_is_code_2_with_every_fault(tmp_path):
    path = tmp_path / "bad.json"
    path.write_text(
        json.dumps([{"id": "a/b", "scene_desc": "x"}, {"id": "c", "scene_desc": "x", "i2v_params": {"fps": 0}}])
    )
    with fake_server(lambda seen: Answer()) as fake:
        done = cloudvid("run", path, "--server", fake.url, "--token", "t", cwd=tmp_path)
        assert fake.seen == []
    assert done.returncode == 2
    assert [line.split(": ")[2] for line in done.stderr.splitlines()] == ["scenes[0].id", "scenes[1].i2v_params.fps"]


@pytest.mark.parametrize(("document", "fault"), BAD)
def test_every_bad_scene_file_is_code_2_with_the_place(document, fault, tmp_path, monkeypatch, capsys):
    """The command line in this process; the address is one that nothing may be sent to."""
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(document))
    url = f"http://127.0.0.1:{closed_port()}"
    monkeypatch.setattr(
        sys, "argv", ["cloudvid", "run", str(path), "--server", url, "--output-dir", str(tmp_path / "out")]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert f"error: {path}: {fault}" in said
    assert url not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [["run"], ["run", "a", "--json_file", "b"], ["nonsense"], ["run", "a", "--nope"], ["image", "a", "--width", "x"]],
)
def test_wrong_usage_is_exit_code_2(arguments, tmp_path):
    assert cloudvid(*arguments, cwd=tmp_path).returncode == 2


def test_a_parameter_out_of_range_is_exit_code_2(tmp_path):
    done = cloudvid("image", "a", "--width", 129, "--guidance-scale", "nan", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: guidance_scale: must be finite, got NaN",
        "error: width: must be a multiple of 8, got 129",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["image", "a cat", "-o", "x.jpg"], "must end with .png, which the file will be, got x.jpg"),
        (["video", "a.png", "-o", "x.gif"], "must end with .mp4, which the file will be, got x.gif"),
        (["image", "a cat", "-o", "/proc/x.png"], "/proc/x.png cannot be written (No such file or directory)"),
        (["image", "a cat", "-o", "."], ". cannot be written (Is a directory)"),
        (["video", "a.png", "-o", "/dev/null/x.mp4"], "/dev/null/x.mp4 cannot be written (Not a directory)"),
        (["inspect", "nothing.png"], "nothing.png is not there"),
        (["inspect", "."], ". is no file"),
        (["ps", "5"], "belongs to --watch"),
        (["scale", "t2i", "-1"], "-1"),
        (["scale", "t3i", "1"], "t3i"),
    ],
)
def test_meaningless_input_is_code_2_and_sends_nothing(arguments, said, tmp_path):
    with fake_server(lambda seen: Answer()) as fake:
        done = cloudvid(*arguments, cwd=tmp_path, environment={"CLOUDVID_SERVER": fake.url})
        assert fake.seen == []
    assert done.returncode == 2, done.stderr
    assert said in " ".join(done.stderr.split())


def commands():
    return [[], *([name] for name in typer.main.get_command(app).commands)]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_help_fits_80_columns_with_whole_sentences(command, tmp_path):
    done = cloudvid(*command, "-h", cwd=tmp_path, environment={"COLUMNS": "80"})
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert not re.search(r"\w\.\.\.$", done.stdout, re.MULTILINE)
    assert done.stdout == cloudvid(*command, "--help", cwd=tmp_path, environment={"COLUMNS": "80"}).stdout


@pytest.mark.parametrize(("command", "model"), [("image", TextToImageOptions), ("video", ImageToVideoParameters)])
def test_help_has_each_parameters_range_and_default(command, model, tmp_path):
    text = " ".join(cloudvid(command, "--help", cwd=tmp_path).stdout.split())
    for name, field in model.model_fields.items():
        (told,) = re.findall(rf"--{name.replace('_', '-')} <\w+> [^\[]*\[(.*?)\]", text)
        assert told.endswith(f"; default: {field.default}") or field.default in (None, "")
        schema = model.model_json_schema()["properties"][name]
        assert range_of(schema) in told


def test_a_parameter_can_be_spelled_as_in_a_scene_file(tmp_path):
    done = cloudvid("image", "a", "--num_inference_steps", 0, "--guidance_scale=51", cwd=tmp_path)
    assert [line.split(":")[1] for line in done.stderr.splitlines()] == [" num_inference_steps", " guidance_scale"]


def test_the_version_is_that_of_the_package(tmp_path):
    assert cloudvid("--version", cwd=tmp_path).stdout == f"cloudvid {__version__}\n"


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "cloudvid", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"cloudvid {__version__}\n"


@pytest.mark.parametrize("command", ["validate", "plan", "run"])
def test_scenes_json_is_read_where_no_file_is_named(command, scene_file, tmp_path):
    with fake_torchserve() as fake:
        arguments = [] if command == "validate" else connection(fake)
        done = cloudvid(command, *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        (tmp_path / "empty").mkdir()
        done = cloudvid(command, *arguments, cwd=tmp_path / "empty")
    assert done.returncode == 2
    assert "there is no scenes.json here" in " ".join(done.stderr.split())


def test_a_wrong_address_is_invalid_input_with_code_2(tmp_path):
    done = cloudvid("wait", "--server", "localhost:25000", cwd=tmp_path)
    said = 'error: must be a server\'s address of the form http://127.0.0.1:8080, got "localhost:25000"\n'
    assert (done.returncode, done.stderr) == (2, said)


def test_image_takes_the_next_free_name_and_replaces_nothing(tmp_path):
    with fake_torchserve() as fake:

        def image(*options):
            small = ["--width", 64, "--height", 64, "--num-inference-steps", 1]
            return cloudvid("image", "a cat", *small, *options, *connection(fake), cwd=tmp_path)

        for name in ("image.png", "image_2.png", "image_3.png"):
            assert image().stdout.startswith(f"{name}  ")
        before = (tmp_path / "image_2.png").read_bytes()
        posts = fake.posts.total()
        refused = image("-o", "image_2.png")
        assert (refused.returncode, fake.posts.total()) == (2, posts)
        assert "image_2.png is there already; --force replaces it" in " ".join(refused.stderr.split())
        assert (tmp_path / "image_2.png").read_bytes() == before
        assert image("-o", "image_2.png", "--force").stdout.startswith("image_2.png  ")
        assert image("--force").stdout.startswith("image.png  ")
    assert {path.name for path in tmp_path.iterdir()} == {"image.png", "image_2.png", "image_3.png"}


def test_image_shows_its_steps_and_seconds_on_a_terminal(tmp_path):
    arguments = ["image", "a cat", "--width", 64, "--height", 64, "--num-inference-steps", 2]
    with fake_torchserve(step_seconds=0.2) as fake:
        terminal = {"TTY_COMPATIBLE": "1", "TERM": "xterm"}
        shown = cloudvid(*arguments, *connection(fake), cwd=tmp_path, environment=terminal).stdout
        piped = cloudvid(*arguments, *connection(fake), cwd=tmp_path).stdout
    assert "denoise 1/2" in shown
    assert re.search(r"image.png  [\d,]+ bytes, \d+\.\d s, seed \d+, noise-t2i@1", shown)
    assert re.fullmatch(r"image_2.png  [\d,]+ bytes, seed \d+, noise-t2i@1\n", piped)


def test_an_interrupted_video_says_that_its_job_is_cancelled(tmp_path):
    (tmp_path / "a.png").write_bytes(PICTURE)
    begun, cancelled = threading.Event(), threading.Event()

    def answer(seen):
        if seen.method == "POST":
            begun.set()
            cancelled.wait(60)
        elif seen.method == "DELETE":
            cancelled.set()
        return Answer(body=b'{"jobs": []}')

    with fake_server(answer) as fake:
        words = command("video", tmp_path / "a.png", "-o", tmp_path / "a.mp4", *connection(fake))
        with subprocess.Popen(words, env=environment(), stderr=subprocess.PIPE, text=True) as run:
            assert begun.wait(60)
            run.send_signal(signal.SIGINT)
            assert run.stderr.read() == "interrupted; the job is cancelled\n"
    assert (run.returncode, cancelled.is_set()) == (130, True)


def test_an_interrupt_while_waiting_says_how_to_continue(scene_file, tmp_path):
    asked = threading.Event()

    def answer(seen):
        if seen.path.startswith("/models/"):
            asked.set()
        return workers("LOADING") if seen.path.startswith("/models/") else Answer()

    with fake_server(answer) as fake:
        words = command("run", scene_file, "--wait", 60, "--output-dir", tmp_path / "out", *connection(fake))
        with subprocess.Popen(words, env=environment(), stderr=subprocess.PIPE, text=True) as run:
            assert asked.wait(60)
            run.send_signal(signal.SIGINT)
            said = run.stderr.read()
    assert run.returncode == 130
    assert "interrupted before the first scene; continue with\n  cloudvid run " in said


def test_validate_says_how_many_scenes_there_are(scene_file, tmp_path):
    done = cloudvid("validate", scene_file, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"{scene_file}: 2 scenes, no faults\n")


def test_an_output_folder_that_cannot_be_used_is_one_line(scene_file, tmp_path):
    (tmp_path / "out").write_text("a file")
    with fake_torchserve() as fake:
        arguments = [*connection(fake), "--output-dir", "out"]
        done = cloudvid("run", scene_file, *arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "error: out cannot be used: File exists\n")
