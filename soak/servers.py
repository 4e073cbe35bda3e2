"""Real servers for the cases: TorchServe, and archives with the tiny models, or with stages that make noise at once."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cloudvid_schema.protocol import Stage
from support.changed_archives import build, set_values, with_noise
from support.servers import READY_SECONDS, Running, running_server, tiny_models

QUEUE = {Stage.T2I: 8, Stage.I2V: 4}
"""Requests that wait, at most."""
RESPONSE_SECONDS = 3
"""Without a sign of life, after which a worker is replaced."""
KINDS = ("tiny models", "noise")
"""Of servers."""


@dataclass(frozen=True)
class Served(Running):
    """A server of the soak.

    Attributes:
        store: its archives.
        models: folder of each stage's model; a case may break them and repairs them. None where noise is made.
    """

    store: Path
    models: dict[str, Path]

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return KINDS[not self.models]

    @property
    def folder(self) -> Path:
        """For what belongs to it."""
        return self.process.run_dir.parent

    def start(self) -> None:
        """Start it again, and wait for both stages."""
        self.process.spawn(self.store)
        self.client().wait_until_ready(timeout=READY_SECONDS)


def _change(handlers: Path, *, make_noise: bool) -> None:
    if make_noise:
        with_noise(handlers, stall_seconds=4 * RESPONSE_SECONDS)
    for stage, size in QUEUE.items():
        settings = {"jobQueueSize": size, "responseTimeout": RESPONSE_SECONDS, "maxRetryTimeoutInSec": 30}
        set_values(handlers / f"{stage}.yaml", **settings)


@contextmanager
def served(folder: Path, settings: dict[str, str] | None = None, *, make_noise: bool = False) -> Iterator[Served]:
    """A server whose stages have a worker each, short queues and short time-outs.

    Args:
        folder: for archives, models and the server.
        settings: more of its environment.
        make_noise: its stages have no models, and its workers start in less than half the time.
    """
    store = build(folder / "archives", partial(_change, make_noise=make_noise))
    models = (
        {}
        if make_noise
        else {stage: shutil.copytree(model, folder / model.name) for stage, model in tiny_models().items()}
    )
    names = models or dict.fromkeys(QUEUE, Path("noise"))
    one_thread = {"OMP_NUM_THREADS": "1"}  # the workers are many, the cores few
    with running_server(folder / "run", names, store, one_thread | (settings or {})) as running:
        yield Served(running.process, store, models)
