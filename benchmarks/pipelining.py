"""How much the batch gains by having both stages at work at once: the client and its pipeline, against one scene after
the other, on a server with one worker a stage whose stages take the same time.

    python benchmarks/pipelining.py [--scenes 8] [--pairs 3]

The bound for N scenes whose stages take t1 and t2 is N(t1 + t2) / (N max(t1, t2) + min(t1, t2)). Arms alternate;
the sequential arm runs twice in each pair, and the ratio of the two is the noise floor.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "handlers"), str(ROOT / "tests")]

from fake_torchserve import fake_torchserve  # noqa: E402
from folders import scenes as small_scenes  # noqa: E402

from cloudvid import Client, Stage, parse_scenes, render  # noqa: E402


def sequential(scenes, client, folder):
    """One scene after the other, each written as the batch writes it."""
    for scene in scenes:
        picture = client.send(scene.t2i_request(), on_event=lambda event: None)
        picture.save(folder / scene.picture_name)
        client.send(scene.i2v_request(), picture.data, on_event=lambda event: None).save(folder / scene.video_name)


def pipelined(scenes, client, folder):
    """The batch."""
    for _ in render(scenes, client, folder):
        pass


def timed(arm, scenes, client):
    """Seconds of one arm, and the files that it made."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        arm(scenes, client, Path(folder))
        seconds = time.perf_counter() - began
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.suffix in (".png", ".mp4")}
    return seconds, files


def stage_seconds(scenes, client, repeats=5):
    """What each stage takes when nothing else runs."""
    times = {stage: [] for stage in Stage}
    for scene in scenes[:repeats]:
        began = time.perf_counter()
        picture = client.send(scene.t2i_request(), on_event=lambda event: None)
        between = time.perf_counter()
        client.send(scene.i2v_request(), picture.data, on_event=lambda event: None)
        times[Stage.T2I].append(between - began)
        times[Stage.I2V].append(time.perf_counter() - between)
    return statistics.median(times[Stage.T2I]), statistics.median(times[Stage.I2V])


def main():
    """Measure, print, and keep the samples."""
    parser = argparse.ArgumentParser(description="Pipelined against sequential.")
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--step-seconds", type=float, default=0.25)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    scenes = parse_scenes(small_scenes(options.scenes))
    with fake_torchserve(step_seconds=options.step_seconds) as server:
        client = Client(server.url, management=server.url, token="t")
        t1, t2 = stage_seconds(scenes, client)
        samples = []
        for _ in range(options.pairs):
            first, files = timed(sequential, scenes, client)
            batch, same = timed(pipelined, scenes, client)
            second, _ = timed(sequential, scenes, client)
            assert same == files, "both arms make the same files"
            samples.append({"sequential": [first, second], "pipelined": batch})
    n = options.scenes
    bound = n * (t1 + t2) / (n * max(t1, t2) + min(t1, t2))
    ratio = statistics.median(statistics.mean(s["sequential"]) / s["pipelined"] for s in samples)
    floor = statistics.median(s["sequential"][0] / s["sequential"][1] for s in samples)
    result = {"scenes": n, "t1": t1, "t2": t2, "bound": bound, "ratio": ratio, "noise_floor": floor, "samples": samples}
    print(f"t1 {t1:.3f} s, t2 {t2:.3f} s, {n} scenes: bound {bound:.3f}, pipelined is {ratio:.3f} times as fast "
          f"({ratio / bound:.1%} of the bound), noise floor {floor:.3f}")  # fmt: skip
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
