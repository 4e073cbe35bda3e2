"""No request is sent whose result might not find its place on the disk."""

import os
import resource
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from cloudvid import Client, NoRoom, RenderOptions, parse_scenes, render
from cloudvid.batch.events import BatchFinished
from cloudvid.batch.manifest import read_records
from cloudvid.batch.plan import make_plan
from cloudvid.batch.progress import Asked
from cloudvid.batch.store import MARGIN, Store, most_bytes
from cloudvid_schema.files import Disk
from cloudvid_schema.protocol import ImageToVideoRequest, Stage, TextToImageRequest
from cloudvid_stages import media
from support.fake_torchserve import fake_torchserve
from support.folders import contents, scenes


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
        (Small(size=10_000), " has only 9,9"),
        (Small(limit=50_000), "files are limited to 50,000 bytes"),
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
def test_a_full_disk_ends_the_batch_with_all_results_recorded(size, tmp_path):
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


class Counting(Small):
    """Always as much room; keeps how often it was asked for it."""

    def __init__(self, size):
        super().__init__(size)
        self.asked, self.changed = 0, threading.Condition()

    def free(self, folder):
        with self.changed:
            self.asked += 1
            self.changed.notify_all()
        return self._size

    def await_question(self, count):
        with self.changed:
            assert self.changed.wait_for(lambda: self.asked >= count, timeout=60)


def test_two_files_under_way_need_room_for_both(tmp_path):
    """The first picture is held at the server until the second has asked for its room."""
    picture = TextToImageRequest(prompt="-", width=256, height=256)
    size = most_bytes(picture, picture)
    disk = Counting(2 * size + MARGIN - 1)
    with fake_torchserve(fault=lambda stage, body: disk.await_question(2)) as server:
        _, error = run(server, tmp_path, disk)
        assert server.posts == {Stage.T2I: 1}
    assert f"{tmp_path} has only {disk.free(tmp_path):,} bytes left" in str(error)
    assert (
        f"may need {size:,} bytes and files in progress {size:,}, and the manifest and the gallery {MARGIN:,}, but"
        in str(error)
    )
    assert len(list(tmp_path.glob("*.png"))) == 1, "what is under way has its place"


def test_room_that_is_just_enough_is_enough(tmp_path):
    """Of one worker a picture and one that waits are under way, or a clip and one that waits."""
    batch = parse_scenes(scenes(6, width=256, height=256))
    sizes = [most_bytes(Asked.of(batch[0], stage).request, batch[0].t2i_request()) for stage in Stage]
    disk = Counting(2 * sum(sizes) + MARGIN)
    with fake_torchserve() as server:
        last, error = run(server, tmp_path, disk)
    assert error is None
    assert last.done == 6


def test_no_room_for_a_clip_ends_the_pictures_too(tmp_path):
    """The pictures that are under way are held until the first clip has been refused, and are kept."""
    document = scenes(6)
    batch = parse_scenes(document)
    picture, clip = (most_bytes(Asked.of(batch[0], stage).request, batch[0].t2i_request()) for stage in Stage)
    disk = Counting(2 * picture + MARGIN)
    assert picture * 2 < clip

    def hold(stage, body):
        if b"scene 0" not in body:
            disk.await_question(4)  # of the clip, and of the third picture
            for thread in threading.enumerate():
                if thread.name == "i2v s0":
                    thread.join(timeout=60)

    with fake_torchserve(fault=hold) as server:
        with pytest.raises(NoRoom, match=f"^s0_video.mp4 may need {clip:,} bytes"):
            list(render(batch, Client(server.url, management=server.url, token="t"), tmp_path, disk=disk))
        assert server.posts == {Stage.T2I: 3}
    assert len(list(tmp_path.glob("*.png"))) == 3


def test_what_is_promised_is_given_back_with_each_file(tmp_path):
    store = Store(tmp_path, Counting(1000 + MARGIN))
    for _ in range(3):
        with store.room_for("a.png", 600):
            full = r"b\.png may need 401 bytes and files in progress 600"
            with pytest.raises(NoRoom, match=full), store.room_for("b.png", 401):
                pass
            with store.room_for("b.png", 400):
                pass
    with pytest.raises(ValueError, match="a failure"), store.room_for("a.png", 600):
        raise ValueError("a failure")
    with store.room_for("a.png", 1000):
        pass


def test_a_manifest_that_grows_past_the_longest_file_is_refused(tmp_path):
    longest = 100 + 2**16
    store = Store(tmp_path, Small(limit=longest))
    (tmp_path / "manifest.jsonl").write_bytes(bytes(100))
    with store.room_for("a.png", longest):
        pass
    for record, size in ((101, 1), (100, longest + 1)):
        (tmp_path / "manifest.jsonl").write_bytes(bytes(record))
        refused = f"^a.png may need {size:,} bytes, but files are limited to {longest:,} bytes"
        with pytest.raises(NoRoom, match=refused), store.room_for("a.png", size):
            pass


def test_a_disk_says_what_the_system_says_of_it(tmp_path, monkeypatch):
    told = {"f_blocks": 1000, "f_bfree": 300, "f_bavail": 200, "f_frsize": 512, "f_bsize": 4096}
    monkeypatch.setattr(os, "statvfs", lambda folder: SimpleNamespace(**told))
    assert Disk().free(tmp_path) == 200 * 512, "not what is kept for root"
    told["f_blocks"] = 0
    assert Disk().free(tmp_path) is None
    monkeypatch.undo()
    assert Disk().free(tmp_path / "none") is None
    limits = iter([(10**9, 10**12), (resource.RLIM_INFINITY, resource.RLIM_INFINITY)])
    monkeypatch.setattr(resource, "getrlimit", lambda kind: next(limits))
    assert Disk().longest() == 10**9, "the soft limit is in force"
    assert Disk().longest() is None


def test_a_plan_says_that_there_may_be_no_room(tmp_path):
    batch, folder = parse_scenes(scenes(6, width=256, height=256)), tmp_path / "not/made/yet"
    most = sum(most_bytes(Asked.of(scene, stage).request, scene.t2i_request()) for scene in batch for stage in Stage)
    assert make_plan(batch, folder, {}, disk=Small(size=most + MARGIN)).warnings == []
    assert make_plan(batch, folder, {}, disk=Small()).warnings == []
    (said,) = make_plan(batch, folder, {}, disk=Small(size=most + MARGIN - 1)).warnings
    assert said.startswith(f"{folder} has {most + MARGIN - 1:,} bytes left, and the files may need {most + MARGIN:,}")


def test_a_plan_needs_no_room_for_what_is_there(tmp_path):
    with fake_torchserve() as server:
        list(render(parse_scenes(scenes(1)), Client(server.url, management=server.url, token="t"), tmp_path))
    assert make_plan(parse_scenes(scenes(1)), tmp_path, {}, disk=Counting(1000)).warnings == []
    (said,) = make_plan(parse_scenes(scenes(1)), tmp_path, {}, disk=Counting(1000), force=True).warnings
    assert "has 1,000 bytes left" in said


def test_a_clips_room_follows_from_its_picture():
    picture = TextToImageRequest(prompt="-", width=256, height=128)
    besides = 2**16
    assert most_bytes(picture, picture) == round(256 * 128 * 3 * 1.01) + besides
    assert most_bytes(ImageToVideoRequest(), picture) == 25 * 256 * 128 * 3 // 2 + besides
    assert most_bytes(ImageToVideoRequest(num_frames=4, width=128), picture) == 4 * 128 * 64 * 3 // 2 + besides


@pytest.mark.parametrize(("width", "height", "frames"), [(64, 64, 2), (256, 128, 25), (512, 512, 8)])
def test_noise_takes_no_more_than_the_most_that_is_reckoned(width, height, frames):
    noise = np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), np.uint8)
    picture = TextToImageRequest(prompt="noise", width=width, height=height)
    size = len(media.png_bytes(Image.fromarray(noise[0]), None))
    assert size < most_bytes(picture, picture) < 2 * size + 2**17
    assert len(media.mp4_bytes(noise, 7, None)) < most_bytes(ImageToVideoRequest(num_frames=frames), picture)
