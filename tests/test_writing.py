"""How files are written: in an order that a crash at any point survives, and whole or not at all."""

import contextlib
import errno
import os
from pathlib import Path

import pytest

from cloudvid import Generated, OutputError, parse_scenes, render
from cloudvid.batch.events import SceneDone, SceneFailed
from cloudvid.batch.manifest import read_records
from cloudvid.endpoints.answers import writing
from cloudvid_schema.files import Disk, write_file
from support.fake_torchserve import fake_torchserve
from support.faulty_disk import Faulty, Recording
from support.folders import contents, leftovers, scenes
from support.loopback import client_of


def whole_file(name):
    """The operations that write a file under its final name."""
    part = f".{name}.part"
    return [
        ("open", part),
        ("write", part),
        ("fsync", part),
        ("replace", name),
        ("open", "folder"),
        ("fsync", "folder"),
    ]


APPENDED = [("append to", "manifest.jsonl"), ("write", "manifest.jsonl"), ("fsync", "manifest.jsonl")]


def test_each_file_is_on_the_disk_before_its_record(tmp_path):
    disk = Recording()
    with fake_torchserve() as server:
        list(render(parse_scenes(scenes(1)), client_of(server), tmp_path, disk=disk))
    assert disk.operations == [
        *whole_file("s0_base_image.png"),
        *APPENDED,
        *whole_file("s0_video.mp4"),
        *APPENDED,
        *whole_file("index.html"),
        *whole_file("manifest.jsonl"),
    ]


@pytest.mark.parametrize("at", range(1, 7))
def test_a_write_that_fails_leaves_what_was_there(at, tmp_path):
    path = tmp_path / "a.png"
    write_file(path, b"before")
    with pytest.raises(OutputError, match=f"{path} cannot be written: Input/output error") as raised, writing(path):
        write_file(path, b"afterwards", Faulty(at, errno.EIO))
    assert raised.value.errno == errno.EIO
    replaced = at > 4
    assert contents(tmp_path) == {"a.png": b"afterwards" if replaced else b"before"}


@pytest.mark.parametrize("reason", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_without_fsync_loses_nothing(reason, tmp_path):
    class Unsynced(Disk):
        def fsync(self, handle):
            raise OSError(reason, os.strerror(reason))

    with fake_torchserve() as server:
        events = list(render(parse_scenes(scenes(1)), client_of(server), tmp_path, disk=Unsynced()))
    assert (events[-1].done, events[-1].stopped) == (1, None)


def test_an_interrupted_write_leaves_no_part(tmp_path):
    class Interrupted(Disk):
        def fsync(self, handle):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "a.png", b"data", Interrupted())
    assert contents(tmp_path) == {}


def test_a_part_that_another_cloudvid_swept_is_written_again(tmp_path):
    class Swept(Disk):
        swept = 0

        def replace(self, source, target):
            if not self.swept:
                self.swept += 1
                source.unlink()
            super().replace(source, target)

    disk = Swept()
    with fake_torchserve() as server:
        events = list(render(parse_scenes(scenes(1)), client_of(server), tmp_path, disk=disk))
        assert server.posts.total() == 2, "the answer itself is kept"
    assert disk.swept == 1
    assert [event.scene for event in events if isinstance(event, SceneDone)] == ["s0"]


def test_only_parts_of_our_own_are_swept(tmp_path):
    foreign = {".mine.part", ".s0_video.mp4.0123ABCD.part", "s0_video.mp4.0123abcd.part", ".a.01234567.part.txt"}
    for name in foreign:
        (tmp_path / name).write_bytes(b"not ours")
    (tmp_path / ".s0_video.mp4.0123abcd.part").write_bytes(b"ours")
    with fake_torchserve() as server:
        list(render(parse_scenes(scenes(1)), client_of(server), tmp_path))
    assert {path.name for path in tmp_path.iterdir() if "part" in path.name} == foreign


@pytest.mark.parametrize("reason", [errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG])
def test_a_name_that_cannot_be_written_fails_that_scene_only(reason, tmp_path):
    class Unwritable(Disk):
        def replace(self, source, target):
            if target.name == "s0_base_image.png":
                raise OSError(reason, os.strerror(reason))
            super().replace(source, target)

    with fake_torchserve() as server:
        events = list(render(parse_scenes(scenes(3)), client_of(server), tmp_path, disk=Unwritable()))
    assert [(event.scene, event.error) for event in events if isinstance(event, SceneFailed)] == [("s0", "OutputError")]
    assert (events[-1].done, events[-1].failed, events[-1].stopped) == (2, 1, None)
    assert not leftovers(tmp_path)


@pytest.mark.timeout(60)  # a batch that does not learn of the end of a job waits for it
def test_a_disk_that_breaks_in_another_way_fails_the_scene(tmp_path):
    class Broken(Disk):
        def open(self, path, flags):
            if path.name.startswith(".s0_base_image.png"):
                raise RuntimeError("a defect")
            return super().open(path, flags)

    with fake_torchserve() as server:
        events = list(render(parse_scenes(scenes(2)), client_of(server), tmp_path, disk=Broken()))
    (failed,) = [event for event in events if isinstance(event, SceneFailed)]
    assert (failed.scene, failed.error, failed.message) == ("s0", "StageError", "t2i: RuntimeError: a defect")
    assert events[-1].done == 1


class NoGallery(Disk):
    """Cannot write the gallery, or only once at most."""

    def __init__(self, times):
        self.left = times

    def replace(self, source, target):
        if target.name == "index.html":
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().replace(source, target)


def test_a_gallery_that_fails_meanwhile_ends_no_batch(tmp_path):
    """It is drawn again at the end."""
    now = [0.0]
    disk = NoGallery(times=-1)
    events = []
    with fake_torchserve() as server:
        for event in render(parse_scenes(scenes(2)), client_of(server), tmp_path, disk=disk, clock=lambda: now[0]):
            events.append(event)
            now[0] += 60.0
            if isinstance(event, SceneDone) and event.scene == "s1":
                disk.left = 99
    assert (events[-1].done, events[-1].stopped) == (2, None)
    assert "2 done" in (tmp_path / "index.html").read_text()


def test_a_gallery_that_fails_at_last_costs_no_order(tmp_path):
    with fake_torchserve() as server:
        batch = render(parse_scenes(scenes(2)[::-1]), client_of(server), tmp_path, disk=NoGallery(times=0))
        with pytest.raises(OutputError, match=r"index\.html cannot be written"):
            list(batch)
    records, is_tidy = read_records(tmp_path)
    assert (list(records), is_tidy) == (["s1", "s0"], True)


def test_an_interrupt_is_no_error_where_the_gallery_fails(tmp_path):
    with fake_torchserve() as server:
        batch = render(parse_scenes(scenes(2)), client_of(server), tmp_path, disk=NoGallery(times=0))
        while not isinstance(next(batch), SceneDone):
            pass
        batch.close()
    assert "s0" in read_records(tmp_path)[0]


def opened():
    """What this process has open: files, folders and all else."""
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            yield link.readlink()


def test_no_file_stays_open(tmp_path):
    with fake_torchserve() as server:
        list(render(parse_scenes(scenes(4)), client_of(server), tmp_path))
    write_file(tmp_path / "a.png", b"data")
    assert not [path for path in opened() if path.is_relative_to(tmp_path)]


def test_a_result_saves_itself_into_a_folder_not_made_yet(tmp_path):
    result = Generated(b"data", "image/png", 7, "m@1", {})
    assert result.save(tmp_path / "a/b/c.png") == tmp_path / "a/b/c.png"
    assert contents(tmp_path / "a/b") == {"c.png": b"data"}
    for name in ("", "/"):
        with pytest.raises(OutputError, match="is not the name of a file"):
            result.save(name)


def test_a_file_has_the_permissions_that_the_umask_leaves(tmp_path):
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "a.png", b"data")
    finally:
        os.umask(before)
    assert (tmp_path / "a.png").stat().st_mode & 0o777 == 0o640
