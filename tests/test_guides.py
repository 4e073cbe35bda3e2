"""The commands of the documents: the operator's are run as they stand, and all of them name what there is."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from cloudvid.cli import app
from cloudvid_stages.settings import ImageToVideoSettings, TextToImageSettings
from support import ROOT
from support.loopback import closed_port, free_port
from support.proxies import certificate, needs_nginx, proxy

DOCUMENTS = [path for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")] if path.name != "containers.md"]
"""There `cloudvid` is an image; test_image.py reads that document."""
COMMAND = typer.main.get_command(app)
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
MAKE_VARIABLES = set(
    re.findall(r"^([A-Z0-9_]+) [?:]?=|\$\$\{([A-Z]+):\+|ifdef (\w+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
)
OTHERS = {"docker", "git", "kubectl", "openssl", "sudo", "umask", "cloudvid"}
"""Programs that are not ours, and `cloudvid` of any command."""
SETTINGS = {
    f"CLOUDVID_{stage}_{name.upper()}"
    for stage, kind in (("T2I", TextToImageSettings), ("I2V", ImageToVideoSettings))
    for name in kind.model_fields
}


def console(text, chapter=""):
    """The commands of a document, or of one of its chapters, with the lines that continue them."""
    if chapter:
        text = text.split(f"\n## {chapter}\n")[1].split("\n## ")[0]
    return re.findall(r"^ *\$ (.*)", re.sub(r"\\\n\s*", " ", text), re.MULTILINE)


def all_commands():
    inline = re.compile(r"`((?:(?:\.venv/bin/)?(?:cloudvid|make|python) |deploy/)[^`]*)`")
    return {
        command for path in DOCUMENTS for text in [path.read_text()] for command in console(text) + inline.findall(text)
    }


@pytest.mark.parametrize("command", sorted(all_commands()))
def test_a_documented_command_names_what_there_is(command):
    command = re.sub(r"\$\([^)]*\)", "ANSWER", command.partition(" # ")[0]).lstrip("(")
    words = [word.strip("[];") for word in shlex.split(command)]
    for name in [word.partition("=")[0] for word in words if re.match(r"CLOUDVID_(T2I|I2V)_", word)]:
        assert name in SETTINGS
    words = [word for word in words if not re.match(r"[A-Z0-9_]+=", word)] if words[0] != "make" else words
    options = {word.partition("=")[0] for word in words if word.startswith("--")} - {"--help"}  # every parser's own
    match words:
        case ["make", *rest]:
            known = {name for names in MAKE_VARIABLES for name in names if name}
            assert {word for word in rest if "=" not in word} <= TARGETS
            assert {word.partition("=")[0] for word in rest if "=" in word} <= known
        case [program, name, *_] if Path(program).name == "cloudvid" and not name.startswith("<"):
            parameters = COMMAND.commands[name].params
            assert options <= {
                flag for parameter in parameters for flag in (*parameter.opts, *parameter.secondary_opts)
            }
        case [program, script, *_] if Path(program).name.startswith("python") and script.endswith(".py"):
            source = (ROOT / script).read_text()
            assert all(f'"{option}"' in source for option in options)
        case [_, "-m", module, *_]:
            path = ROOT / module.replace(".", "/")
            source = (path / "__main__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
            assert all(f'"{option}"' in source for option in options)
        case [program, folder, *_] if Path(program).name == "pytest":
            assert list((ROOT / folder).glob("test_*.py"))
        case [path, *_] if path.startswith("deploy/"):
            assert (ROOT / path).exists()
        case _:
            assert words[0] in OTHERS


HOSTILE = 'o\'neil "x" $(touch made) $(shell touch made) `touch made` ;touch made'


@pytest.mark.parametrize("how", ["environment", "argument"])
def test_a_make_variable_is_passed_on_as_it_stands(how, tmp_path):
    """An argument is make's own syntax, in which a dollar sign is written twice."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for folder in (".venv/bin", "model_store", "requirements", "deploy"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("requirements/server.txt", "requirements/java.txt", "pyproject.toml", "deploy/archives.py"):
        (tmp_path / name).touch()
    for name in (".venv/.ready", "model_store/t2i.mar", "model_store/i2v.mar"):
        (tmp_path / name).touch()
    python = tmp_path / ".venv/bin/python"
    python.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        "print(json.dumps(sys.argv[1:] + [os.environ.get('CLOUDVID_T2I_MODEL')]))\n"
    )
    python.chmod(0o755)
    values = {
        name: f"{name} {HOSTILE}" for name in ("SCENES", "OUT", "PROFILE", "PORT", "TOKENS", "MINUTES", "T2I_MODEL")
    }
    given = [f"{name}={text.replace('$', '$$')}" for name, text in values.items()] if how == "argument" else []
    passed: list[str] = []
    for target in ("run", "start", "stop", "proxy", "demo-models"):
        environment = os.environ | ({} if given else values)
        done = subprocess.run(
            ["make", "--no-print-directory", target, *given],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        passed += json.loads(done.stdout)
    assert set(values.values()) <= set(passed)
    assert not (tmp_path / "made").exists()


@pytest.fixture
def checkout(tmp_path, tiny_models, noise_store):
    """A clone whose set-up is done, with archives that make noise; and the environment for commands in it."""
    for name in ("deploy", "handlers", "client", "docs", "examples", "requirements"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "pyproject.toml", "config.properties"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv").mkdir()
    for part in Path(sys.prefix).iterdir():
        if part.name[0] != ".":
            (tmp_path / ".venv" / part.name).symlink_to(part)
    (tmp_path / ".venv/.ready").touch()
    (tmp_path / "model_store").mkdir()
    for file in noise_store.iterdir():
        shutil.copyfile(file, tmp_path / "model_store" / file.name)
    models = {f"CLOUDVID_{stage.upper()}_MODEL": str(path) for stage, path in tiny_models.items()}
    kept = {name: value for name, value in os.environ.items() if name != "CLOUDVID_SERVER"}
    yield tmp_path, kept | models | {"PORT": str(free_port())}
    subprocess.run(["make", "stop"], cwd=tmp_path, env=kept, check=True, timeout=60)


def run(command, folder, environment):
    done = subprocess.run(
        ["bash", "-euc", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.slow
@needs_nginx
def test_the_guides_set_up_server_proxy_and_front(checkout):
    folder, environment = checkout
    (start, wait, batch) = console((ROOT / "README.md").read_text(), "A server that stays")
    for command in (start, wait):
        run(command, folder, environment)
    assert "done" in run(f"{batch} --only balloon_dawn_002", folder, environment)
    assert (folder / "output/balloon_dawn_002_video.mp4").is_file()
    guide = (ROOT / "docs/deploying.md").read_text()
    (again, doctor, scale, ps, tokens, host) = console(guide, "One machine")
    assert again.startswith("make start"), "the server of before is the one that runs"
    for command in (doctor, scale):
        run(command, folder, environment)
    assert "2 ready" in run(ps, folder, environment)
    run(tokens, folder, environment)
    token = (folder / "tokens").read_text().strip()
    pem, _ = certificate(folder)
    for name in ("cert.pem", "ca.pem"):
        shutil.copy(pem, folder / name)
    (front,) = console(guide, "Several machines")
    with (
        documented(host, folder) as below,
        documented(front.replace("https://10.0.0.1:8443", below.url), folder) as above,
    ):
        for url in (below.url, above.url):
            told = run(f".venv/bin/cloudvid wait --server {url} --token {token} --ca ca.pem", folder, environment)
            assert "both stages are ready" in told
    run("make stop", folder, environment)
    (second,) = re.findall(r"`(\S+ -m deploy.server start [^`]*)`", (ROOT / "docs/troubleshooting.md").read_text())
    said = run(second.replace("DIR", "elsewhere").replace("9000", str(free_port())), folder, environment)
    (wait,) = re.findall("`(cloudvid wait [^`]*)`", said)
    assert "both stages are ready" in run(f".venv/bin/{wait}", folder, environment)
    run(".venv/bin/python -m deploy.server stop --run-dir elsewhere", folder, environment)


def documented(command, folder):
    """The proxy that a guide's command starts, on loopback, as are the hosts behind it."""
    words = shlex.split(re.sub(r"https://10\.[\d.]+:\d+", f"https://127.0.0.1:{closed_port()}", command))
    assert words[:3] == [".venv/bin/python", "-m", "deploy.proxy"]
    options = [re.sub(r"^0\.0\.0\.0:\d+$", f"127.0.0.1:{free_port()}", word) for word in words[3:]]
    at = options.index("--tokens")
    tokens = options[at + 1]
    return proxy(folder / tokens, *options[:at], *options[at + 2 :], folder=folder)
