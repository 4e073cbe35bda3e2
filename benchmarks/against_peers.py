"""R9: other servers of the same stages. The product's stage classes behind a LitServe service and a minimal FastAPI
service, each asked for the same files by the same few lines: one scene, a batch, clips. Each has one t2i worker and two
i2v workers.

All three take the same JSON body, answer with the file in one piece, and have one thread a worker. Below 1 ours is
ahead.
"""

import base64
import contextlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from figures import Figure, Line, arms_panel
from measure import AGAIN, Samples, interleave, noise_floor, ratio
from outputs import check
from peers.process import PEERS, service, wait_for
from stand import Running, Stand, WrongOutput

from cloudvid import Scene, Stage
from cloudvid.connection import plain_session

OURS = "TorchServe"
_WORKERS = {Stage.T2I: 1, Stage.I2V: 2}
"""Of each server: of stages that do not take the same time, as they are run."""


@dataclass(frozen=True)
class Target:
    """A server of both stages, or one for each."""

    urls: Mapping[Stage, str]
    keys: Mapping[Stage, str] = field(default_factory=dict)
    _session: Any = None

    def ask(self, stage: Stage, asked: Mapping[str, Any]) -> bytes:
        """The file of a request."""
        headers = {"Authorization": f"Bearer {self.keys[stage]}"} if self.keys else {}
        answer = self._session.post(self.urls[stage], json=asked, headers=headers, timeout=300)
        answer.raise_for_status()
        return bytes(answer.content)


def _ours(servers: Mapping[Stage, Running]) -> Target:
    urls = {stage: f"{running.server.url}/predictions/{stage}" for stage, running in servers.items()}
    return Target(urls, {stage: running.key("inference") for stage, running in servers.items()}, plain_session())


def picture(target: Target, scene: Scene) -> bytes:
    """A scene's picture."""
    return target.ask(Stage.T2I, scene.t2i_request().model_dump(mode="json", exclude_none=True))


def clip(target: Target, scene: Scene, drawn: bytes) -> bytes:
    """A scene's clip."""
    asked = scene.i2v_request().model_dump(mode="json", exclude_none=True)
    return target.ask(Stage.I2V, {"image": base64.b64encode(drawn).decode(), **asked})


def batch(target: Target, scenes: list[Scene]) -> list[bytes]:
    """Every scene's clip, both stages at work: two requests a stage, one of which waits."""
    with ThreadPoolExecutor(2) as drawing, ThreadPoolExecutor(2) as animating:
        drawn = [drawing.submit(picture, target, scene) for scene in scenes]

        def animated(scene: Scene, future: "Future[bytes]") -> "Future[bytes]":
            return animating.submit(clip, target, scene, future.result())

        made = [animated(scene, future) for scene, future in zip(scenes, drawn, strict=True)]
        return [future.result() for future in made]


def clips(target: Target, scenes: list[Scene], drawn: bytes) -> list[bytes]:
    """A clip of each scene from one picture, for two workers: two requests at once, and one that waits."""
    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(lambda scene: clip(target, scene, drawn), scenes))


def compared(
    stand: Stand, targets: Mapping[str, Target], rounds: int, work: Callable[[Target], list[bytes]], shape: Any
) -> Samples:
    """Seconds of the same work by each server.

    Raises:
        WrongOutput: they make other files.
    """
    expected = work(targets[OURS])
    for data in expected:
        check(data, shape)

    def timed(target: Target) -> float:
        began = stand.clock()
        made = work(target)
        seconds = stand.clock() - began
        if made != expected:
            raise WrongOutput("two servers make other files")
        return seconds

    arms = {name: lambda target=target: timed(target) for name, target in targets.items()}
    for arm in arms.values():
        arm()
    arms[OURS + AGAIN] = lambda: timed(targets[OURS])
    return interleave(arms, rounds, stand.told)


@contextlib.contextmanager
def _peers(stand: Stand) -> Iterator[dict[str, Target]]:
    """Each peer, once all of its workers have loaded."""
    with contextlib.ExitStack() as services:
        urls = {
            peer: {stage: services.enter_context(service(stand, peer, stage, _WORKERS[stage])) for stage in Stage}
            for peer in PEERS
        }
        for peer, of_stage in urls.items():
            for stage, url in of_stage.items():
                wait_for(peer, url, _WORKERS[stage])
        yield {
            peer: Target({stage: f"{url}/predict" for stage, url in of_stage.items()}, _session=plain_session())
            for peer, of_stage in urls.items()
        }


def measure(stand: Stand) -> Figure:
    """A scene, a batch, clips for two workers."""
    scenes = stand.scenes(stand.size(6, 2), steps=20, clip_steps=3)
    first, side = scenes[0], scenes[0].t2i_params.width
    shape = (first.i2v_params.num_frames, side, side, 3)
    ours = _ours({Stage.T2I: stand.shared, Stage.I2V: stand.two_workers})
    stand.told("LitServe and FastAPI")
    with _peers(stand) as found:
        targets = {OURS: ours, **found}
        single = compared(
            stand, targets, stand.size(6, 1), lambda target: [clip(target, first, picture(target, first))], shape
        )
        together = compared(stand, targets, stand.size(3, 1), lambda target: batch(target, scenes), shape)
        drawn = picture(ours, first)
        two = compared(stand, targets, stand.size(3, 1), lambda target: clips(target, scenes, drawn), shape)
    lines = []
    for what, samples in (("a scene", single), (f"batch of {len(scenes)}", together), ("2 i2v workers", two)):
        floor = noise_floor(samples, OURS).value
        for peer in PEERS:
            estimate = ratio(samples, OURS, peer)
            lines.append(Line.of(f"{what}, ours / {peer}", estimate, floor=floor, at_most=1.0, equal_counts=True))
    return Figure(
        "R9",
        "Other servers of the same stages",
        lines,
        {"scene": single, "batch": together, "two_workers": two},
        first.model_dump(mode="json", exclude_unset=True),
        [
            arms_panel("seconds a scene", single),
            arms_panel(f"seconds a batch of {len(scenes)}", together),
            arms_panel(f"seconds for {len(scenes)} clips, 2 workers", two),
        ],
    )
