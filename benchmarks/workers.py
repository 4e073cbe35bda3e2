"""R4: what a second i2v worker gains. The same clips through a server with one worker, and through one that
`Client.scale` gave a second; one thread each.
"""

from concurrent.futures import ThreadPoolExecutor

from figures import Figure, Line, arms_panel
from measure import AGAIN, interleave, noise_floor, ratio
from outputs import check
from stand import Stand, WrongOutput

from cloudvid import Client, Scene


def clips(scenes: list[Scene], picture: bytes, client: Client, workers: int) -> list[bytes]:
    """A clip of each scene, with one request for each worker and one that waits, as a batch has."""
    with ThreadPoolExecutor(workers + 1) as pool:
        return [made.data for made in pool.map(lambda scene: client.send(scene.i2v_request(), picture), scenes)]


def measure(stand: Stand) -> Figure:
    """Rounds of one worker, two, one again."""
    one = stand.shared.client()
    scenes = stand.scenes(stand.size(6, 3), clip_steps=4)
    side, frames = scenes[0].t2i_params.width, scenes[0].i2v_params.num_frames
    picture = one.send(scenes[0].t2i_request()).data
    expected = clips(scenes, picture, one, 1)
    for clip in expected:
        check(clip, (frames or 0, side, side, 3))
    two = stand.two_workers.client()
    clips(scenes[:4], picture, two, 2)  # both have made one before

    def timed(client: Client, workers: int) -> float:
        began = stand.clock()
        made = clips(scenes, picture, client, workers)
        seconds = stand.clock() - began
        if made != expected:
            raise WrongOutput("two workers make other clips than one")
        return seconds

    arms = {
        "1 worker": lambda: timed(one, 1),
        "2 workers": lambda: timed(two, 2),
        "1 worker" + AGAIN: lambda: timed(one, 1),
    }
    samples = interleave(arms, stand.size(3, 1), stand.told)
    gain, floor = ratio(samples, "1 worker", "2 workers"), noise_floor(samples, "1 worker").value
    return Figure(
        "R4",
        "A second i2v worker",
        [Line.of(f"{len(scenes)} clips, 1 worker / 2 workers", gain, floor=floor, at_least=1.8)],
        {"rounds": samples},
        scenes[0].model_dump(mode="json", exclude_unset=True)["i2v_params"],
        [arms_panel(f"seconds for {len(scenes)} clips", samples)],
    )
