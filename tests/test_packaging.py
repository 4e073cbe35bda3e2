"""What ships: archives that need nothing else, a client without torch, documents that are true."""

import json
import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import jsonschema
import pytest
import yaml

from deploy import archives
from support import ROOT
from support.fake_torchserve import fake_torchserve
from support.servers import naming

EXAMPLES = json.loads((ROOT / "examples/input_scenes.json").read_text())


LOADING = """
import atexit, gc, importlib.util, logging, pathlib, sys
stage, root = sys.argv[1:]
here = pathlib.Path.cwd()
sys.path[:] = [str(here)] + [entry for entry in sys.path if not entry.startswith(root) or "site-packages" in entry]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
import yaml
importlib.import_module(f"{stage}_handler")
assert "diffusers" not in sys.modules, "imported before the handler sees to how"
import ts
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
from ts.model_loader import TsModelLoader
metrics = MetricsCacheYamlImpl(str(pathlib.Path(ts.__file__).parent / "configs/metrics.yaml"))
service = TsModelLoader().load(stage, str(here), f"{stage}_handler.py", None, 1, metrics_cache=metrics)
logging.disable()
assert gc.isenabled() and gc.get_freeze_count() > 100_000, "the collector goes over what was imported"
print(service.context.model_yaml_config["responseTimeout"])
packages = {"cloudvid", "cloudvid_schema", "cloudvid_serving", "cloudvid_stages", "stage_handler", "demo", "deploy"}
ours = [name for name in sys.modules if name.split(".")[0] in packages]
strays = [name for name in ours if not sys.modules[name].__file__.startswith(str(here))]
assert {name.split(".")[0] for name in ours} == packages - {"cloudvid", "demo", "deploy"} and not strays, strays
atexit.unregister(sys.modules["stage_handler"].end_at_once)  # it ends a worker with 1, as a failure does
"""


def test_each_archive_loads_without_the_repository(model_store, tmp_path, tiny_models):
    """Both at once."""
    loading = {}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for stage in tiny_models:
        with zipfile.ZipFile(model_store / f"{stage}.mar") as archive:
            archive.extractall(tmp_path / stage)
            assert not [name for name in archive.namelist() if "tiny" in name], "only tests need the tiny models"
        loading[stage] = subprocess.Popen(
            [sys.executable, "-c", LOADING, stage, str(ROOT)],
            cwd=tmp_path / stage,
            env=environment | naming(tiny_models),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    for stage, process in loading.items():
        said, errors = process.communicate(timeout=200)
        assert process.returncode == 0, f"{stage}: {errors}"
        assert int(said) >= 1800


@pytest.mark.slow
def test_the_client_installs_and_works_without_torch(tmp_path):
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv/bin/python"
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([*pip, "install", "-q", "--no-compile", str(ROOT)], env=clean, check=True, timeout=300)
    installed = subprocess.run([*pip, "list"], env=clean, capture_output=True, text=True, check=True).stdout
    assert "cloudvid" in installed
    (packages,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    for package in ("cloudvid", "cloudvid_schema"):
        assert (packages / package / "py.typed").is_file(), "its types are for others too"
    assert not (packages / "cloudvid_serving").exists(), "only the server needs it"
    assert not re.search(r"^(torch|diffusers|numpy|pillow)\b", installed, re.MULTILINE | re.IGNORECASE)
    done = subprocess.run(
        [tmp_path / "venv/bin/cloudvid", "validate", str(ROOT / "examples/input_scenes.json")],
        env=clean,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 scenes, no faults" in done.stdout


def test_what_is_generated_from_the_schema_is_up_to_date():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT / "client"), str(ROOT / "handlers")))}
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs/generate.py"), "--check"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_schema_and_the_reader_agree_on_scene_files():
    schema = json.loads((ROOT / "docs/scene-file.schema.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(EXAMPLES)
    validator.validate({"$schema": "x", "scenes": EXAMPLES})
    for bad in (
        [],
        [{}],
        [{"id": "a/b", "scene_desc": "x"}],
        [{"id": "a", "scene_desc": "x", "t2i_params": {"width": 9}}],
    ):
        assert not validator.is_valid(bad)


def test_the_servers_limits_fit_the_job():
    from cloudvid_schema.protocol import MAX_IMAGE_BYTES, MAX_PARAMETERS_BYTES

    lines = (ROOT / "config.properties").read_text().splitlines()
    properties = dict(line.split("=", 1) for line in lines if "=" in line and line[0] != "#")
    assert int(properties["max_request_size"]) > MAX_IMAGE_BYTES * 4 / 3 + MAX_PARAMETERS_BYTES, "a picture as base64"
    assert int(properties["max_response_size"]) > 100 * 6_553_500 / 2, "a clip of many times TorchServe's default"
    assert properties["disable_token_authorization"] == "false"
    assert properties["enable_model_api"] == "false"
    sizes = {"t2i": MAX_PARAMETERS_BYTES, "i2v": int(properties["max_request_size"])}
    queued = 0
    for stage in ("t2i", "i2v"):
        settings = yaml.safe_load((ROOT / f"handlers/{stage}.yaml").read_text())
        assert settings["responseTimeout"] >= 1800
        assert settings["startupTimeout"] >= 600
        assert settings["maxWorkers"] >= settings["minWorkers"]
        queued += sizes[stage] * settings.get("jobQueueSize", int(properties["job_queue_size"]))
    assert "-Xmx2g " in properties["vmargs"]
    assert queued < 0.75 * 2**31, "the bodies of all requests that wait"


def test_every_link_in_the_documents_leads_somewhere():
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def recipes():
    """The shell recipes of README's chapter on the endpoints."""
    readme = (ROOT / "README.md").read_text()
    chapter = readme.split("## Call an endpoint")[1].split("\n## ")[0]
    return re.findall(r"```bash\n(.*?)```", chapter, re.DOTALL)


def test_every_recipe_of_the_readme_works_as_it_stands(server, tmp_path):
    (tmp_path / ".run").symlink_to(server.process.run_dir)
    script = "\n".join(recipes()).replace("http://127.0.0.1:8080", server.url)
    assert script.count("curl") >= 6
    done = subprocess.run(
        ["bash", "-euxc", script], cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "lighthouse.png").read_bytes().startswith(b"\x89PNG")
    clips = {path.name: path.read_bytes() for path in tmp_path.glob("*.mp4")}
    assert len(clips) == 4
    assert len(set(clips.values())) == 1, "every body form means the same"
    assert '"event":"result"' in (tmp_path / "events.ndjson").read_text().splitlines()[-1]


def python_examples():
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_every_python_example_of_the_readme_runs(tmp_path):
    (tmp_path / ".run").mkdir()
    with fake_torchserve() as fake:
        record = {"pid": os.getpid(), "port": fake.server_address[1]}
        (tmp_path / ".run/server.json").write_text(json.dumps(record))
        for code in python_examples():
            code = code.replace("http://127.0.0.1:8080", fake.url)
            done = subprocess.run(
                [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
            )
            assert (done.returncode, done.stderr) == (0, "")
            assert "failed:" not in done.stdout
    files = {"lighthouse.png", "lighthouse.mp4", "output/dawn_base_image.png", "output/dawn_video.mp4"}
    assert all((tmp_path / name).is_file() for name in [*files, "0.png", "1.png", "2.png"])


def test_the_readmes_python_example_works_as_it_stands(server, tmp_path):
    code, *_ = python_examples()
    (tmp_path / ".run").symlink_to(server.process.run_dir)
    code = code.replace("http://127.0.0.1:8080", server.url)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"lighthouse.png", "lighthouse.mp4"}


def test_the_documents_name_no_path_of_one_machine():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in tracked:
        if Path(name).suffix in (".md", ".json", ".yaml", ".toml", ".txt", ".properties"):
            assert not re.search(r"(^|[\s\"'(])/(root|home|work)/", (ROOT / name).read_text()), name


def test_building_an_archive_touches_no_foreign_temporary_files(tmp_path, monkeypatch):
    (tmp_path / "t2i").mkdir()
    (tmp_path / "t2i/of another build").touch()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    archives.build("t2i", tmp_path / "store", "0")
    assert (tmp_path / "t2i/of another build").exists()
