"""R1: what serving costs. One scene at a time through client, TorchServe and files, against a plain script that makes
the same pixels in one process. Each scene is a separate batch, so that whatever a batch costs at its start and end
(asking the server what it has, manifest, gallery) counts in full.

R2: what both stages at once gain. A batch through `render` on a server with one worker a stage, against the same
client taking one scene after the other, and against the plain script with a thread for each core. The bound for N
scenes whose stages take t1 and t2 is N(t1 + t2) / (N max(t1, t2) + min(t1, t2)). The steps of the picture are chosen
so that the stages take about the same time on this machine.
"""

import os
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from benchmarks.figures import Line
from benchmarks.measure import interleave, median, noise_floor, ratio, timed
from benchmarks.monolith import monolith
from benchmarks.outputs import check_scenes
from benchmarks.plots import arms
from cloudvid import Client, Scene, Stage, render
from cloudvid.batch.events import StageDone

_STEPS, _FRAMES, _CLIP_STEPS = 24, 3, 3


@pytest.mark.bench("R1", "Whole scenes, served and in one process")
def test_r1_whole_scenes(bench, server):
    (scene,) = scenes = bench.scenes(1)
    outside: list[float] = []
    client, reference = server.client(), bench.new_folder("reference")

    def served() -> float:
        folder = bench.new_folder()
        seconds, events = timed(lambda: list(render(scenes, client, folder)))
        # What the server's own timings (Server-Timing) do not cover, of both requests and all that the client does.
        outside.append(seconds - sum(event.seconds for event in events if isinstance(event, StageDone)))
        check_scenes(scenes, folder, same_as=reference)
        return seconds

    with monolith(bench.models) as script:
        script(scenes, reference)
        ways = {"served": served, "in process": lambda: script(scenes, bench.new_folder())}
        for way in ways.values():
            way()  # both have made one before
        outside.clear()
        samples = interleave(ways, bench.size(10, 1), again="served", progress=bench.progress)
    floor = noise_floor(samples, "served")
    more = [1000 * (sample["served"] - sample["in process"]) for sample in samples]
    lines = [
        Line.of("a scene, served / in process", ratio(samples, "served", "in process"), floor=floor, at_most=1.03),
        Line.of("a scene in process", median([sample["in process"] for sample in samples]), "s"),
        Line.of("served takes longer by", median(more), "ms"),
        Line.of("outside of Server-Timing (requests, batch, files)", median([1000 * value for value in outside]), "ms"),
    ]
    raw = {"rounds": samples, "outside_of_server_timing": outside}
    bench.keep(lines, raw, scene.model_dump(mode="json", exclude_unset=True), arms("seconds a scene", samples))


def one_after_the_other(scenes: list[Scene], client: Client, folder: Path) -> dict[Stage, list[float]]:
    """Have each scene's files made, and written as the batch writes them; the seconds of each stage's requests."""
    seconds: dict[Stage, list[float]] = {stage: [] for stage in Stage}
    for scene in scenes:
        picture = None
        for stage, name in ((Stage.T2I, scene.picture_name), (Stage.I2V, scene.video_name)):
            asked = scene.t2i_request() if stage is Stage.T2I else scene.i2v_request()
            took, made = timed(partial(client.send, asked, picture, on_event=lambda event: None))
            seconds[stage].append(took)
            made.save(folder / name)
            picture = made.data
    return seconds


@pytest.mark.bench("R2", "Both stages at once")
def test_r2_both_stages_at_once(bench, server):
    client = server.client()
    first = bench.scenes(bench.size(5, 2), _STEPS, _FRAMES, _CLIP_STEPS)
    t1, t2 = map(statistics.median, one_after_the_other(first, client, bench.new_folder()).values())
    scenes = bench.scenes(bench.size(8, 2), max(2, round(_STEPS * t2 / t1)), _FRAMES, _CLIP_STEPS)
    count, cores = len(scenes), len(os.sched_getaffinity(0))
    reference = bench.new_folder("reference")
    alone = one_after_the_other(scenes, client, reference)

    def batch(work: Callable[[Path], object], same_as: Path | None = reference) -> float:
        folder = bench.new_folder()
        seconds, _ = timed(lambda: work(folder))
        check_scenes(scenes, folder, same_as)
        return seconds

    with monolith(bench.models, threads=cores) as script:
        script(scenes[:1], bench.new_folder())
        ways = {
            "sequential": lambda: batch(partial(one_after_the_other, scenes, client)),
            "pipelined": lambda: batch(lambda folder: list(render(scenes, client, folder))),
            "script": lambda: batch(partial(script, scenes), same_as=None),  # more threads round otherwise
        }
        samples = interleave(ways, bench.size(3, 1), again="sequential", progress=bench.progress)
    t1, t2 = map(statistics.median, alone.values())
    bound = count * (t1 + t2) / (count * max(t1, t2) + min(t1, t2))
    gain, floor = ratio(samples, "sequential", "pipelined"), noise_floor(samples, "sequential")
    script_share = ratio(samples, "script", "pipelined")
    lines = [
        Line.of(f"batch of {count}, one after the other / pipelined", gain, floor=floor),
        Line("the bound for these stages", bound),
        Line("of the bound", 100 * gain.value / bound, "%", at_least=90),
        Line.of(f"plain script on {cores} threads / pipelined", script_share, at_least=1),
    ]
    about = scenes[0].model_dump(mode="json", exclude_unset=True) | {"t2i_seconds": t1, "i2v_seconds": t2}
    raw = {"rounds": samples, "alone": {str(stage): values for stage, values in alone.items()}}
    bench.keep(lines, raw, about, arms(f"seconds a batch of {count}", samples))
