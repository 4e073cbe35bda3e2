"""Fixtures: one real server for the whole run, with the tiny models, in a folder and on ports of its own."""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "handlers"), str(ROOT / "deploy")]
for name in [name for name in os.environ if name.startswith("CLOUDVID_")]:
    del os.environ[name]  # a developer's own server is none of the tests' business

import archives  # noqa: E402
import profiles  # noqa: E402
from torchserve_process import Server, free_port  # noqa: E402

from cloudvid import Client  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first: those that need the real server come last, those that start one of their own at the end."""
    items.sort(
        key=lambda item: ("server" in getattr(item, "fixturenames", ())) + 2 * bool(item.get_closest_marker("slow"))
    )


@dataclass(frozen=True)
class Running:
    """The server under test."""

    process: Server
    models: dict[str, Path]

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


@pytest.fixture(scope="session")
def tiny_models() -> dict[str, Path]:
    named = profiles.choose_models("tiny")
    return {stage: Path(named[f"CLOUDVID_{stage.upper()}_MODEL"]) for stage in ("t2i", "i2v")}


@pytest.fixture(scope="session")
def model_store(tmp_path_factory) -> Path:
    store = tmp_path_factory.mktemp("store")
    for stage in ("t2i", "i2v"):
        archives.build(stage, store, "0")
    return store


@pytest.fixture(scope="session")
def server(tmp_path_factory, tiny_models, model_store) -> Iterator[Running]:
    for stage, path in tiny_models.items():
        os.environ[f"CLOUDVID_{stage.upper()}_MODEL"] = str(path)
    os.environ["MY_SECRET"] = os.environ["CLOUDVID_TOKEN"] = "canary"
    process = Server(tmp_path_factory.mktemp("run"), free_port())
    process.spawn(model_store)
    del os.environ["MY_SECRET"], os.environ["CLOUDVID_TOKEN"]
    try:
        running = Running(process, tiny_models)
        running.client().wait_until_ready(timeout=120)
        yield running
    finally:
        process.stop()
        for stage in tiny_models:
            del os.environ[f"CLOUDVID_{stage.upper()}_MODEL"]
