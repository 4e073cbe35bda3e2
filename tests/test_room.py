"""No request is sent whose result might not find its place on the disk."""

import numpy as np
import pytest
from fake_torchserve import fake_torchserve
from folders import contents, scenes
from PIL import Image

from cloudvid import Client, NoRoom, RenderOptions, parse_scenes, render
from cloudvid.decisions import request_of
from cloudvid.events import BatchFinished
from cloudvid.manifest import read_records
from cloudvid.outputs import Disk
from cloudvid.planning import make_plan
from cloudvid.room import MARGIN, most_bytes
from cloudvid_schema.protocol import ImageToVideoRequest, Stage, TextToImageRequest
from cloudvid_stages import media


class Small(Disk):
    """A disk of so many bytes, or one whose files may have so many."""

    def __init__(self, size=None, limit=None):
        self._size, self._limit = size, limit

    def free(self, folder):
        return None if self._size is None else self._size - sum(path.stat().st_size for path in folder.iterdir())

    def longest(self):
        return self._limit


def run(server, folder, disk):
    """The last event, and the error."""
    client, last = Client(server.url, management=server.url, token="t"), None
    try:
        for event in render(parse_scenes(scenes(6, width=256, height=256)), client, folder, RenderOptions(), disk=disk):
            last = event
    except NoRoom as error:
        return last, error
    return last, None


@pytest.mark.parametrize(
    ("disk", "said"),
    [
        (Small(size=10_000), " has room for 9,9"),
        (Small(limit=50_000), "no file may be longer than 50,000"),
    ],
)
def test_where_there_is_no_room_nothing_is_sent(disk, said, tmp_path):
    with fake_torchserve() as server:
        last, error = run(server, tmp_path / "out", disk)
        assert server.posts.total() == 0
    assert said in str(error)
    assert isinstance(last, BatchFinished)
    assert last.stopped == str(error)


@pytest.mark.parametrize("size", [1_400_000, 1_800_000, 2_200_000])
def test_a_disk_that_fills_up_ends_the_batch_with_every_result_on_record(size, tmp_path):
    with fake_torchserve(step_seconds=0.01) as server:
        _, error = run(server, tmp_path / "whole", Disk())
        assert error is None
        before = server.posts.total()
        _, error = run(server, tmp_path / "out", Small(size))
        sent = server.posts.total() - before
        assert error is not None
        records, _ = read_records(tmp_path / "out")
        assert sent == sum(record.entry(stage) is not None for record in records.values() for stage in Stage) > 0
        assert run(server, tmp_path / "out", Disk())[1] is None
        assert server.posts.total() - before == 12
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_plan_says_that_there_may_be_no_room(tmp_path):
    batch, folder = parse_scenes(scenes(6, width=256, height=256)), tmp_path / "not/made/yet"
    most = sum(most_bytes(request_of(scene, stage, True), scene.t2i_request()) for scene in batch for stage in Stage)
    assert make_plan(batch, folder, {}, disk=Small(size=most + MARGIN)).warnings == []
    assert make_plan(batch, folder, {}, disk=Small()).warnings == []
    (said,) = make_plan(batch, folder, {}, disk=Small(size=most + MARGIN - 1)).warnings
    assert said.startswith(f"{folder} has room for {most + MARGIN - 1:,} bytes; the files take {most:,} at most")


@pytest.mark.parametrize(("width", "height", "frames"), [(64, 64, 2), (256, 128, 25), (512, 512, 8)])
def test_noise_takes_no_more_than_the_most_that_is_reckoned(width, height, frames):
    noise = np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), np.uint8)
    picture = TextToImageRequest(prompt="noise", width=width, height=height)
    size = len(media.png_bytes(Image.fromarray(noise[0]), None))
    assert size < most_bytes(picture) < 2 * size + 2**17
    assert len(media.mp4_bytes(noise, 7, None)) < most_bytes(ImageToVideoRequest(num_frames=frames), picture)
