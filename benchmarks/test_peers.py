"""R9: other servers of the same stages. The product's stage classes behind a LitServe service and a minimal FastAPI
service, each asked for the same files by the same few lines: one scene, a batch, clips. Each has one t2i worker and two
i2v workers.

All three take the same JSON body, answer with the file in one piece, and have one thread a worker. Below 1 ours is
ahead.
"""

import base64
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import requests

from benchmarks.figures import Line
from benchmarks.measure import interleave, noise_floor, ratio, timed
from benchmarks.outputs import WrongOutput, check
from benchmarks.plots import arms
from cloudvid import Scene, Stage
from cloudvid.endpoints.connection import plain_session
from support import ROOT
from support.loopback import free_port
from support.waiting import until

_OURS, _PEERS = "TorchServe", ("LitServe", "FastAPI")
_WORKERS = {Stage.T2I: 1, Stage.I2V: 2}
"""Of each server: of stages that do not take the same time, as they are run."""


@dataclass(frozen=True)
class Target:
    """A server of both stages, or one for each."""

    urls: Mapping[Stage, str]
    keys: Mapping[Stage, str]
    session: requests.Session

    def picture(self, scene: Scene) -> bytes:
        """A scene's picture."""
        return self._ask(Stage.T2I, scene.t2i_request().model_dump(mode="json", exclude_none=True))

    def clip(self, scene: Scene, picture: bytes) -> bytes:
        """A scene's clip."""
        asked = scene.i2v_request().model_dump(mode="json", exclude_none=True)
        return self._ask(Stage.I2V, {"image": base64.b64encode(picture).decode(), **asked})

    def _ask(self, stage: Stage, asked: Mapping[str, Any]) -> bytes:
        headers = {"Authorization": f"Bearer {self.keys[stage]}"} if self.keys else {}
        answer = self.session.post(self.urls[stage], json=asked, headers=headers, timeout=300)
        answer.raise_for_status()
        return bytes(answer.content)


def batch(scenes: list[Scene], target: Target) -> list[bytes]:
    """Every scene's clip, both stages at work: two requests a stage, one of which waits."""
    with ThreadPoolExecutor(2) as drawing, ThreadPoolExecutor(2) as animating:
        pictures = drawing.map(target.picture, scenes)
        clips = [animating.submit(target.clip, *pair) for pair in zip(scenes, pictures, strict=True)]
        return [clip.result() for clip in clips]


def clips(scenes: list[Scene], picture: bytes, target: Target) -> list[bytes]:
    """A clip of each scene from one picture, for two workers: two requests at once, and one that waits."""
    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(lambda scene: target.clip(scene, picture), scenes))


@contextlib.contextmanager
def service(bench, peer: str, stage: Stage) -> Iterator[str]:
    """The address of a peer's service, once all of its workers have loaded; it has its own process group."""
    port = free_port()
    url, workers = f"http://127.0.0.1:{port}", _WORKERS[stage]
    path = os.pathsep.join(str(ROOT / name) for name in (".", "client", "handlers", "tests"))
    with (bench.folder / f"{peer}-{stage}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peers", peer, str(port), str(workers)],
            env=os.environ | {"PYTHONPATH": path, "STAGE": stage, "MODEL": str(bench.models[stage])},
            cwd=bench.new_folder("run"),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    answers: set[str] = set()

    def is_ready() -> bool:
        """LitServe says that its workers are; of uvicorn's processes each answers with its own id."""
        with contextlib.suppress(requests.ConnectionError, requests.ReadTimeout):
            answer = requests.get(f"{url}/health", timeout=10)
            answers.update([answer.text] if answer.ok else [])
        return len(answers) >= (1 if peer == "LitServe" else workers)

    try:
        until(is_ready, f"{peer} serves {stage}", 180)
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.bench("R9", "Other servers of the same stages")
def test_r9_other_servers_of_the_same_stages(bench, server, two_workers):
    scenes = bench.scenes(bench.size(6, 2), steps=20, clip_steps=3)
    first, side, count = scenes[0], scenes[0].t2i_params.width, len(scenes)
    shape = (first.i2v_params.num_frames, side, side, 3)
    ours = {Stage.T2I: server, Stage.I2V: two_workers}
    urls = {stage: f"{running.url}/predictions/{stage}" for stage, running in ours.items()}
    keys = {stage: running.key("inference") for stage, running in ours.items()}
    targets = {_OURS: Target(urls, keys, plain_session())}

    def compared(work: Callable[[Target], list[bytes]], rounds: int) -> list[dict[str, float]]:
        """Seconds of the same work by each server, which must make the same files."""
        expected = work(targets[_OURS])
        for data in expected:
            check(data, shape)

        def arm(target: Target) -> float:
            seconds, made = timed(lambda: work(target))
            if made != expected:
                raise WrongOutput("two servers make other files")
            return seconds

        ways = {name: partial(arm, target) for name, target in targets.items()}
        for way in ways.values():
            way()
        return interleave(ways, rounds, again=_OURS, progress=bench.progress)

    with contextlib.ExitStack() as services:
        for peer in _PEERS:
            bench.progress(peer)
            urls = {stage: f"{services.enter_context(service(bench, peer, stage))}/predict" for stage in Stage}
            targets[peer] = Target(urls, {}, plain_session())
        single = compared(lambda target: [target.clip(first, target.picture(first))], bench.size(6, 1))
        together = compared(partial(batch, scenes), bench.size(3, 1))
        picture = targets[_OURS].picture(first)
        two = compared(partial(clips, scenes, picture), bench.size(3, 1))
    lines = []
    for what, samples in (("a scene", single), (f"batch of {count}", together), ("2 i2v workers", two)):
        floor = noise_floor(samples, _OURS)
        for peer in _PEERS:
            share = ratio(samples, _OURS, peer)
            lines.append(Line.of(f"{what}, ours / {peer}", share, floor=floor, at_most=1.0, equal_counts=True))
    panels = [arms("seconds a scene", single), arms(f"seconds a batch of {count}", together)]
    panels.append(arms(f"seconds for {count} clips, 2 workers", two))
    raw = {"scene": single, "batch": together, "two_workers": two}
    bench.keep(lines, raw, first.model_dump(mode="json", exclude_unset=True), *panels)
