"""What the figures share: the tiny models, the archives, servers in folders of their own, small scenes."""

import contextlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "client"), str(ROOT / "handlers"), str(ROOT / "deploy"), str(ROOT)]

import archives  # noqa: E402
import profiles  # noqa: E402
from torchserve_process import STAGES, Server, free_port  # noqa: E402

from cloudvid import Client, Scene, Stage, parse_scenes  # noqa: E402

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
"""Of each process that computes, ours and what we compare with: two of them share two cores."""
_READY_SECONDS = 180


class WrongOutput(Exception):
    """Two ways to make the same did not, or a file is not what was asked for."""


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """These variables for the time of the block, and none of this shell's that name another server or model."""
    kept = dict(os.environ)
    for name in [name for name in kept if name.startswith("CLOUDVID_")]:
        del os.environ[name]
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


@dataclass(frozen=True)
class Running:
    """A TorchServe that is ready."""

    server: Server

    def client(self, **options: Any) -> Client:
        """A client of it."""
        return Client(self.server.url, key_file=self.server.run_dir / "key_file.json", **options)

    def key(self, api: str) -> str:
        """Its key for the endpoints (`inference`) or for `management`."""
        keys = json.loads((self.server.run_dir / "key_file.json").read_text())
        return str(keys[api]["key"])


@dataclass
class Stand:
    """One run of the benchmarks.

    Args:
        folder: of its own; servers, archives and outputs go below it.
        smoke: whether everything is as small as can be, and times mean nothing.
        told: told how it goes.
    """

    folder: Path
    smoke: bool
    told: Callable[[str], None]
    clock: Callable[[], float] = time.perf_counter
    _open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _shared: Running | None = None
    _two_workers: Running | None = None

    def __post_init__(self) -> None:
        with contextlib.redirect_stdout(None), environment({}):
            named = profiles.choose_models("tiny")
        self.models = {stage: Path(named[f"CLOUDVID_{stage.upper()}_MODEL"]) for stage in Stage}
        self.store = self.folder / "store"
        for stage in STAGES:
            archives.build(stage, self.store, "0")

    def size(self, full: int, smoke: int) -> int:
        """How many, or how large."""
        return smoke if self.smoke else full

    def new_folder(self, name: str = "out") -> Path:
        """An empty one."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))

    @property
    def shared(self) -> Running:
        """A server of both stages, one worker each of one thread; started by the first figure that needs it."""
        if self._shared is None:
            self.told("starting TorchServe: one worker a stage, one thread each")
            self._shared = self._open.enter_context(self.torchserve())
        return self._shared

    @property
    def two_workers(self) -> Running:
        """A server of i2v alone that was given a second worker, one thread each; started by the first that needs it."""
        if self._two_workers is None:
            self.told("starting TorchServe: i2v alone, then its second worker")
            self._two_workers = self._open.enter_context(self.torchserve(Stage.I2V))
            self._two_workers.client().scale(Stage.I2V, 2)
        return self._two_workers

    @contextlib.contextmanager
    def torchserve(
        self,
        *stages: str,
        models: Mapping[Stage, Path] | None = None,
        store: Path | None = None,
        settings: Mapping[str, str] | None = None,
        wait: bool = True,
    ) -> Iterator[Running]:
        """A TorchServe for the time of the block."""
        names = {f"CLOUDVID_{stage.upper()}_MODEL": str(path) for stage, path in (models or self.models).items()}
        server = Server(self.new_folder("run"), free_port(), tuple(stages) or STAGES)
        with environment({**ONE_THREAD, **names, **(settings or {})}):
            server.spawn(store or self.store)
        try:
            running = Running(server)
            if wait:
                running.client().wait_until_ready(*map(Stage, server.stages), timeout=_READY_SECONDS)
            yield running
        finally:
            server.stop()

    def archive(self, stage: str, **settings: int) -> Path:
        """A model store with one archive whose YAML has other values in its first part."""
        folder = self.new_folder("store")
        text = (ROOT / f"handlers/{stage}.yaml").read_text()
        for name, value in settings.items():
            text, changed = re.subn(rf"^{name}: \d+", f"{name}: {value}", text, flags=re.MULTILINE)
            if changed != 1:
                raise ValueError(f"{stage}.yaml has no {name}")
        config = folder / f"{stage}.yaml"
        config.write_text(text)
        archives.build(stage, folder, "0", config)
        return folder

    def close(self) -> None:
        """End the shared server and remove the folder."""
        self._open.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def scenes(self, count: int, steps: int = 40, frames: int = 4, clip_steps: int = 5) -> list[Scene]:
        """Small scenes with seeds, always the same; 64×64 and two steps in a smoke run."""
        side = self.size(128, 64)
        t2i = {"width": side, "height": side, "num_inference_steps": self.size(steps, 2)}
        i2v = {"num_frames": self.size(frames, 2), "num_inference_steps": self.size(clip_steps, 1), "fps": 6}
        return parse_scenes(
            [
                {
                    "id": f"scene_{number}",
                    "scene_desc": f"a lighthouse at dawn, number {number}",
                    "t2i_params": {**t2i, "seed": 100 + number},
                    "i2v_params": {**i2v, "seed": 200 + number},
                }
                for number in range(count)
            ]
        )
