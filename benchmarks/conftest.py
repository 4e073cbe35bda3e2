"""The benchmarks as pytest runs them: what the figures share, and what is kept of them.

`make bench` measures. `make bench-smoke` does everything at the smallest sizes, checks what is made, and keeps nothing.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from benchmarks import figures, plots
from benchmarks.figures import Figure, Line
from cloudvid import Scene, Stage, parse_scenes
from deploy import archives
from deploy.java import java_home
from support import prepare_process
from support.machine import describe
from support.servers import Running, running_server, tiny_models

prepare_process()
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
"""Of each process that computes, ours and what we compare with: two of them share two cores."""
_PACKAGES = ("torch", "diffusers", "transformers", "torchserve", "litserve", "fastapi", "uvicorn")
_KEPT = pytest.StashKey[list[Figure]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of `make bench`."""
    group = parser.getgroup("benchmarks")
    group.addoption("--smoke", action="store_true", help="smallest sizes: are the outputs right? Times mean nothing")
    group.addoption("--run", default=time.strftime("%Y-%m-%d-%H%M%S"), help="name of the run; default: the time")


def pytest_configure(config: pytest.Config) -> None:
    """Have SIGTERM end what was started, as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    config.stash[_KEPT] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """R1 to R9, in order."""
    items.sort(key=lambda item: item.get_closest_marker("bench").args[0])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The table of what was measured."""
    if not config.option.smoke:
        terminalreporter.write_line(figures.table(config.stash[_KEPT]))


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> Path:
    store = tmp_path_factory.mktemp("store")
    for stage in Stage:
        archives.build(stage, store, "0")
    return store


@pytest.fixture(scope="session")
def server(tmp_path_factory, store) -> Iterator[Running]:
    """TorchServe with both stages, one worker each."""
    with running_server(tmp_path_factory.mktemp("run"), tiny_models(), store) as running:
        yield running


@pytest.fixture(scope="session")
def two_workers(tmp_path_factory, store) -> Iterator[Running]:
    """TorchServe with i2v only, which was given a second worker."""
    with running_server(tmp_path_factory.mktemp("run"), {"i2v": tiny_models()["i2v"]}, store) as running:
        running.client().scale(Stage.I2V, 2)
        yield running


@dataclass
class Bench:
    """What a figure needs to be measured, and where it is kept."""

    id: str
    title: str
    is_smoke: bool
    folder: Path
    output: Path
    store: Path
    kept: list[Figure]
    models: dict[str, Path] = field(default_factory=tiny_models)
    began: float = field(default_factory=time.perf_counter)

    def size(self, full: int, smoke: int) -> int:
        """How many, or how large."""
        return smoke if self.is_smoke else full

    def progress(self, text: str) -> None:
        """Print how it goes."""
        print(f"{self.id}  {time.perf_counter() - self.began:6.1f} s  {text}", file=sys.stderr, flush=True)

    def new_folder(self, name: str = "out") -> Path:
        """An empty one."""
        return Path(mkdtemp(prefix=f"{name}-", dir=self.folder))

    def server(self, *stages: str, store: Path | None = None, **options: Any) -> AbstractContextManager[Running]:
        """A TorchServe of these stages, default both, with a worker each."""
        models = options.pop("models", {stage: self.models[stage] for stage in stages or self.models})
        return running_server(self.new_folder("run"), models, store or self.store, **options)

    def scenes(self, count: int, steps: int = 40, frames: int = 4, clip_steps: int = 5) -> list[Scene]:
        """Small scenes with seeds, always the same; 64×64 and two steps in a smoke run."""
        side = self.size(128, 64)
        t2i = {"width": side, "height": side, "num_inference_steps": self.size(steps, 2)}
        i2v = {"num_frames": self.size(frames, 2), "num_inference_steps": self.size(clip_steps, 1), "fps": 6}
        document = []
        for number in range(count):
            seeded = {"t2i_params": {**t2i, "seed": 100 + number}, "i2v_params": {**i2v, "seed": 200 + number}}
            scene = {"id": f"scene_{number}", "scene_desc": f"a lighthouse at dawn, number {number}"}
            document.append(scene | seeded)
        return parse_scenes(document)

    def keep(self, lines: list[Line], samples: Any, about: dict[str, Any], *panels: plots.Panel) -> None:
        """Write the figure and its plot."""
        figure = Figure(self.id, self.title, lines, samples, about)
        self.kept.append(figure)
        machine = describe(*_PACKAGES)
        printed = subprocess.run([java_home() / "bin/java", "-version"], capture_output=True, text=True, check=True)
        machine["versions"]["java"] = re.findall(r'version "([^"]+)"', printed.stderr)[0]
        path = figures.save(figure, machine, self.output)
        plots.draw(f"{self.id}: {self.title}", panels, path.with_suffix(".svg"))


@pytest.fixture
def bench(request, tmp_path, store) -> Iterator[Bench]:
    options, marker = request.config.option, request.node.get_closest_marker("bench")
    output = tmp_path if options.smoke else figures.RESULTS / options.run
    yield Bench(*marker.args, options.smoke, tmp_path, output, store, request.config.stash[_KEPT])
    shutil.rmtree(tmp_path, ignore_errors=True)
