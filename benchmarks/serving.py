"""R1: what serving costs. One scene at a time through client, TorchServe and files, against a plain script that makes
the same pixels in one process; one thread each.

Each scene is a batch of its own, so that whatever a batch costs at its start and end (asking the server what it has,
manifest, gallery) counts in full.
"""

from figures import Figure, Line, arms_panel
from measure import AGAIN, interleave, median, noise_floor, ratio
from monolith_process import monolith
from outputs import check_scenes
from stand import Stand

from cloudvid import render
from cloudvid.events import StageDone


def measure(stand: Stand) -> Figure:
    """Rounds of served, in-process, served again."""
    (scene,) = scenes = stand.scenes(1)
    outside: list[float] = []

    def served() -> float:
        folder = stand.new_folder()
        began = stand.clock()
        events = list(render(scenes, client, folder))
        seconds = stand.clock() - began
        # What the server's own timings (Server-Timing) do not cover, of both requests and all that the client does.
        outside.append(seconds - sum(event.seconds for event in events if isinstance(event, StageDone)))
        check_scenes(scenes, folder, same_as=reference)
        return seconds

    with monolith(stand) as script:
        client = stand.shared.client()
        reference = stand.new_folder("reference")
        script.make(scenes, reference)
        arms = {
            "served": served,
            "in process": lambda: script.make(scenes, stand.new_folder()),
            "served" + AGAIN: served,
        }
        for arm in arms.values():
            arm()  # both have made one before
        outside.clear()
        samples = interleave(arms, stand.size(10, 1), stand.told)
    floor = noise_floor(samples, "served").value
    own = [1000 * (sample["served"] - sample["in process"]) for sample in samples]
    lines = [
        Line.of("a scene, served / in process", ratio(samples, "served", "in process"), floor=floor, at_most=1.03),
        Line.of("a scene in process", median([sample["in process"] for sample in samples]), "s"),
        Line.of("served takes longer by", median(own), "ms"),
        Line.of("outside of Server-Timing (requests, batch, files)", median([1000 * value for value in outside]), "ms"),
    ]
    return Figure(
        "R1",
        "Whole scenes, served and in one process",
        lines,
        {"rounds": samples, "outside_of_server_timing": outside},
        scene.model_dump(mode="json", exclude_unset=True),
        [arms_panel("seconds a scene", samples)],
    )
