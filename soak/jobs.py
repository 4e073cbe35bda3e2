"""One request with the batch's own retries: a stage of a scene, sent, sent again, stored and put on record."""

import queue
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cloudvid import Client, parse_scenes
from cloudvid.decisions import request_of
from cloudvid.events import BatchEvent, StageRetried
from cloudvid.failures import backoff
from cloudvid.manifest import Entry, Manifest
from cloudvid.outputs import DISK
from cloudvid.render_options import RenderOptions
from cloudvid.scenes import Scene
from cloudvid.stage_run import Finished, Job, StageRunner
from cloudvid_schema.protocol import Stage
from soak.case import check

LONGEST = 240.0
"""Seconds after which a request hangs."""


@dataclass(frozen=True)
class Made:
    """How a request went."""

    entry: Entry
    requests: int
    """POSTs that it took."""
    failed: list[str]
    """The error of each but the last, by class."""


def scene(name: str, steps: int = 1, frames: int = 2) -> Scene:
    """The cheapest real scene."""
    t2i = {"width": 64, "height": 64, "num_inference_steps": steps}
    i2v = {"num_inference_steps": steps, "num_frames": frames}
    (made,) = parse_scenes([{"id": name, "scene_desc": f"scene {name}", "t2i_params": t2i, "i2v_params": i2v}])
    return made


def make(
    client: Client,
    what: Scene,
    stage: Stage,
    folder: Path,
    picture: Entry | None = None,
    *,
    on_event: Callable[[BatchEvent], None] = lambda event: None,
) -> Made:
    """Make a scene's picture, or its clip of a picture that lies in the folder, as a batch would.

    Raises:
        CloudVidError: the batch would give it up.
        Wrong: it hangs.
    """
    inbox: queue.SimpleQueue[BatchEvent | Finished] = queue.SimpleQueue()
    usual = RenderOptions()
    manifest = Manifest(folder)
    runner = StageRunner(
        client, manifest, folder=folder, disk=DISK, report=inbox.put, retries=usual.retries,
        patience=usual.patience, clock=time.monotonic, backoff=backoff,
    )  # fmt: skip
    failed: list[str] = []
    ends = time.monotonic() + LONGEST
    try:
        runner.start(Job(what, stage, request_of(what, stage, embed_recipe=True), "new", picture))
        while True:
            try:
                told = inbox.get(timeout=max(0.0, ends - time.monotonic()))
            except queue.Empty:
                check(False, f"{stage} of {what.id} hangs: nothing for {LONGEST:g} s")
            if isinstance(told, StageRetried):
                failed.append(told.error)
            if isinstance(told, Finished):
                if told.entry is None:
                    raise told.error or AssertionError("neither result nor error")
                return Made(told.entry, runner.requests, failed)
            on_event(told)
    finally:
        runner.stop()
        manifest.close()
