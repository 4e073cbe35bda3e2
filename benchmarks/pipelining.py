"""R2: what both stages at once gain. A batch through `render` on a server with one worker a stage, against the same
client taking one scene after the other, and against the plain script with a thread for each core.

The bound for N scenes whose stages take t1 and t2 is N(t1 + t2) / (N max(t1, t2) + min(t1, t2)). The steps of the
picture are chosen so that the stages take about the same time on this machine.
"""

import os
import statistics
from pathlib import Path

from figures import Figure, Line, arms_panel
from measure import AGAIN, interleave, median, noise_floor, ratio
from monolith_process import monolith
from outputs import check_scenes
from stand import Stand

from cloudvid import Client, Scene, Stage, render

_STEPS = 24
_FRAMES = 3
_CLIP_STEPS = 3


def sequential(scenes: list[Scene], client: Client, folder: Path) -> None:
    """One scene after the other, each file written as the batch writes it."""
    for scene in scenes:
        picture = client.send(scene.t2i_request(), on_event=lambda event: None)
        picture.save(folder / scene.picture_name)
        client.send(scene.i2v_request(), picture.data, on_event=lambda event: None).save(folder / scene.video_name)


def stage_seconds(stand: Stand, scenes: list[Scene], client: Client, folder: Path) -> dict[Stage, list[float]]:
    """What each stage's requests take when nothing else runs; their files are kept."""
    seconds: dict[Stage, list[float]] = {stage: [] for stage in Stage}
    for scene in scenes:
        began = stand.clock()
        picture = client.send(scene.t2i_request(), on_event=lambda event: None)
        between = stand.clock()
        clip = client.send(scene.i2v_request(), picture.data, on_event=lambda event: None)
        seconds[Stage.T2I].append(between - began)
        seconds[Stage.I2V].append(stand.clock() - between)
        picture.save(folder / scene.picture_name)
        clip.save(folder / scene.video_name)
    return seconds


def balanced(stand: Stand, count: int, client: Client) -> list[Scene]:
    """Scenes whose picture takes about as long as their clip."""
    first = stand.scenes(stand.size(5, 2), _STEPS, _FRAMES, _CLIP_STEPS)
    t1, t2 = (statistics.median(values) for values in stage_seconds(stand, first, client, stand.new_folder()).values())
    return stand.scenes(count, max(2, round(_STEPS * t2 / t1)), _FRAMES, _CLIP_STEPS)


def measure(stand: Stand) -> Figure:
    """Rounds of one after the other, at once, one after the other again, and the script."""
    client = stand.shared.client()
    scenes = balanced(stand, stand.size(8, 2), client)
    count, cores = len(scenes), len(os.sched_getaffinity(0))
    reference = stand.new_folder("reference")
    alone = stage_seconds(stand, scenes, client, reference)

    def timed(arm: str) -> float:
        folder = stand.new_folder()
        began = stand.clock()
        if arm == "pipelined":
            for _ in render(scenes, client, folder):
                pass
        else:
            sequential(scenes, client, folder)
        seconds = stand.clock() - began
        check_scenes(scenes, folder, same_as=reference)
        return seconds

    def scripted() -> float:
        folder = stand.new_folder()
        seconds = script.make(scenes, folder)
        check_scenes(scenes, folder)  # more threads round otherwise
        return seconds

    with monolith(stand, threads=cores) as script:
        script.make(scenes[:1], stand.new_folder())
        arms = {
            "sequential": lambda: timed("sequential"),
            "pipelined": lambda: timed("pipelined"),
            "script": scripted,
            "sequential" + AGAIN: lambda: timed("sequential"),
        }
        samples = interleave(arms, stand.size(3, 1), stand.told)
    t1, t2 = (statistics.median(values) for values in alone.values())
    bound = count * (t1 + t2) / (count * max(t1, t2) + min(t1, t2))
    gain = ratio(samples, "sequential", "pipelined")
    share = median([sample["script"] / sample["pipelined"] for sample in samples])
    lines = [
        Line.of(
            f"batch of {count}, one after the other / pipelined", gain, floor=noise_floor(samples, "sequential").value
        ),
        Line("the bound for these stages", bound),
        Line("of the bound", 100 * gain.value / bound, "%", at_least=90),
        Line.of(f"plain script on {cores} threads / pipelined", share, at_least=1),
    ]
    return Figure(
        "R2",
        "Both stages at once",
        lines,
        {"rounds": samples, "alone": {str(stage): values for stage, values in alone.items()}},
        scenes[0].model_dump(mode="json", exclude_unset=True) | {"t2i_seconds": t1, "i2v_seconds": t2},
        [arms_panel(f"seconds a batch of {count}", samples)],
    )
