"""Fixtures: one real server for the whole run, with the tiny models, in a folder and on ports of its own."""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import forked
import pytest
import requests

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "handlers"), str(ROOT / "deploy"), str(ROOT)]
for name in [name for name in os.environ if name.startswith("CLOUDVID_")]:
    del os.environ[name]  # a developer's own server is none of the tests' business
for sign in (signal.SIGINT, signal.SIGHUP):
    if (
        signal.getsignal(sign) is signal.SIG_IGN
    ):  # a shell's background job, nohup: what is started here would inherit it
        signal.signal(sign, signal.default_int_handler)
# As the server does: torch's threads that spin while they wait make small models many times slower on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import archives  # noqa: E402
import profiles  # noqa: E402
from loopback import free_port  # noqa: E402
from torchserve_process import STAGES, Server  # noqa: E402

from cloudvid import Client, Stage  # noqa: E402


def pytest_sessionfinish() -> None:
    """End what the session started for all tests."""
    forked.end()


@pytest.hookimpl(tryfirst=True)  # before the lanes are shared out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first: those that share a server come last, those that start one of their own at the end.

    Where there are two lanes (`make test`), one has all that a server takes part in and all slow ones, the other the
    rest.
    """
    servers = {"server", "noise_server"}

    def rank(item: pytest.Item) -> int:
        shares = bool(servers.intersection(getattr(item, "fixturenames", ())))
        return shares + 2 * bool(item.get_closest_marker("slow"))

    items.sort(key=rank)
    for item in items:
        if rank(item):
            item.add_marker(pytest.mark.xdist_group("servers"))


@dataclass(frozen=True)
class Running:
    """The server under test."""

    process: Server

    @property
    def url(self) -> str:
        return self.process.url

    @property
    def management(self) -> str:
        return f"http://127.0.0.1:{self.process.port + 1}"

    @property
    def key_file(self) -> Path:
        return self.process.run_dir / "key_file.json"

    @property
    def environment(self) -> dict[str, str]:
        """For a command line that shall use this server."""
        return {"CLOUDVID_SERVER": self.url, "CLOUDVID_KEY_FILE": str(self.key_file)}

    def management_headers(self) -> dict[str, str]:
        key = json.loads(self.key_file.read_text())["management"]["key"]
        return {"Authorization": f"Bearer {key}"}

    def pids(self, stage: str) -> set[int]:
        """Process ids of a stage's workers that are ready."""
        answer = requests.get(f"{self.management}/models/{stage}", headers=self.management_headers(), timeout=10)
        return {worker["pid"] for worker in answer.json()[0]["workers"] if worker["status"] == "READY"}

    def client(self, **options) -> Client:
        return Client(self.url, key_file=self.key_file, **options)


def naming(models: Mapping[str, Path]) -> dict[str, str]:
    """The environment variables that name a server's models."""
    return {f"CLOUDVID_{stage.upper()}_MODEL": str(path) for stage, path in models.items()}


def end(server: Server) -> None:
    """End a server at once and clean up: where ending it is not what is tried, its orderly seconds are not waited for."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        os.killpg(json.loads(server.pid_file.read_text())["pid"], signal.SIGKILL)
    server.stop()


@pytest.fixture(scope="session")
def tiny_models() -> dict[str, Path]:
    named = profiles.choose_models("tiny")
    return {stage: Path(named[f"CLOUDVID_{stage.upper()}_MODEL"]) for stage in STAGES}


@pytest.fixture(scope="session")
def load(tiny_models):
    """Loads a stage with its tiny model, and with settings, in this process."""
    import stages  # torch and diffusers take seconds to import: most tests need neither

    return lambda stage, **settings: stages.load(tiny_models[stage], stage, **settings)


@pytest.fixture(scope="session")
def plain(load):
    """Of each stage, the pixels that it makes of its request where no setting is changed."""
    import stages

    return {stage: stages.pixels(stage, load(stage))[0] for stage in stages.KINDS}


@pytest.fixture(scope="session")
def model_store(tmp_path_factory) -> Path:
    store = tmp_path_factory.mktemp("store")
    for stage in STAGES:
        archives.build(stage, store, "0")
    return store


@contextmanager
def running_server(run_dir: Path, models: Mapping[str, Path], model_store: Path, **environment) -> Iterator[Running]:
    """A server of these stages, its workers ready, for the time of the block."""
    process = Server(run_dir, free_port(), tuple(models))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (naming(models) | environment).items():
            patch.setenv(name, value)
        process.spawn(model_store)
    try:
        running = Running(process)
        for stage in models:
            running.client().wait_until_ready(Stage(stage), timeout=300)
        yield running
    finally:
        end(process)


@pytest.fixture(scope="session")
def server(tmp_path_factory, tiny_models, model_store) -> Iterator[Running]:
    secrets = {"MY_SECRET": "canary", "CLOUDVID_TOKEN": "canary"}
    with running_server(tmp_path_factory.mktemp("run"), tiny_models, model_store, **secrets) as running:
        yield running


@pytest.fixture(scope="session")
def noise_store(tmp_path_factory) -> Path:
    """Archives whose stages make noise: for tests of the server, whose workers then start in less than half the time."""
    from changed_archives import build, with_noise

    return build(tmp_path_factory.mktemp("noise"), with_noise)


@pytest.fixture(scope="session")
def noise_server(tmp_path_factory, noise_store) -> Iterator[Running]:
    with running_server(tmp_path_factory.mktemp("run"), dict.fromkeys(STAGES, Path("noise")), noise_store) as running:
        yield running
