"""The manifest of an output folder while batches write to it: appended, cut, shared, put in order."""

import fcntl
import json
import os
import socket

import pytest

from cloudvid import OutputError, RenderOptions, UnusableFolder, parse_scenes, render
from cloudvid.batch.events import SceneDone, SceneFailed, StageStarted
from cloudvid.batch.manifest import Record, read_records
from cloudvid.batch.store import Store
from cloudvid.endpoints.errors import FolderInUse
from cloudvid_schema.files import Disk
from support.fake_torchserve import fake_torchserve
from support.folders import scenes
from support.loopback import client_of


@pytest.fixture(scope="module")
def fake():
    with fake_torchserve() as fake:
        yield fake


def run(server, folder, document, **options):
    return list(render(parse_scenes(document), client_of(server), folder, RenderOptions(**options)))


def until_done(server, folder, document, scene):
    """A batch that is interrupted as soon as a scene is done: its last lines are appended, not put in order."""
    batch = render(parse_scenes(document), client_of(server), folder)
    for event in batch:
        if isinstance(event, SceneDone) and event.scene == scene:
            break
    batch.close()


def lines(folder):
    return (folder / "manifest.jsonl").read_text().splitlines()


def ids(folder):
    """Scenes in the manifest's order."""
    return [json.loads(line)["id"] for line in lines(folder)]


def named(scene, **more):
    (found,) = scenes(1)
    return {**found, "id": scene, **more}


def test_a_record_follows_a_line_that_lacks_its_end(fake, tmp_path):
    run(fake, tmp_path, scenes(2))
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_bytes(manifest.read_bytes().rstrip(b"\n"))
    until_done(fake, tmp_path, scenes(3), "s2")
    records, _ = read_records(tmp_path)
    assert sorted(records) == ["s0", "s1", "s2"]


class CutOnce(Disk):
    """Writes half of the first thing, then fails; from then on it works."""

    def __init__(self):
        self.is_cut = False

    def write(self, handle, data):
        if not self.is_cut:
            self.is_cut = True
            super().write(handle, data[: len(data) // 2])
            raise OSError(5, os.strerror(5))
        return super().write(handle, data)


def test_a_record_follows_one_whose_append_was_cut(tmp_path):
    manifest = Store(tmp_path, CutOnce())
    with pytest.raises(OutputError, match=r"manifest\.jsonl cannot be written: Input/output error"):
        manifest.add(Record(id="s0"))
    for scene in ("s1", "s2"):
        manifest.add(Record(id=scene))
    records, _ = read_records(tmp_path)
    assert sorted(records) == ["s1", "s2"]
    assert sorted(manifest.records) == ["s1", "s2"], "what is not on the disk is not on record"
    assert (tmp_path / "manifest.jsonl").read_bytes().count(b"\n") == 3, "the cut line ends before the next begins"
    manifest.close()


def test_the_end_of_a_batch_keeps_what_another_recorded(fake, tmp_path):
    """As where locks do nothing: another batch remakes a scene that this one leaves as it is, and appends it."""
    run(fake, tmp_path, scenes(2))
    batch = render(parse_scenes(scenes(3)), client_of(fake), tmp_path)
    next(batch)
    with (tmp_path / "manifest.jsonl").open("a") as stream:
        other = json.loads(lines(tmp_path)[1])
        other["t2i"]["seed"] = 99
        stream.write(json.dumps(other) + "\n" + json.dumps({"id": "theirs"}) + "\n")
    list(batch)
    records, is_tidy = read_records(tmp_path)
    assert is_tidy
    assert list(records) == ["s0", "s1", "s2", "theirs"]
    assert records["s1"].t2i.seed == 99


def test_of_several_lines_of_a_scene_the_last_counts(fake, tmp_path):
    run(fake, tmp_path, scenes(1, seed=1))
    (old,) = lines(tmp_path)
    run(fake, tmp_path, scenes(1, seed=2))
    (new,) = lines(tmp_path)
    assert old != new
    (tmp_path / "manifest.jsonl").write_text(f"{old}\n{new}\n")
    assert not [event for event in run(fake, tmp_path, scenes(1, seed=2)) if isinstance(event, StageStarted)]
    assert lines(tmp_path) == [new]


def test_opening_a_folder_leaves_a_line_per_scene(fake, tmp_path):
    """So interrupted batches do not add up."""
    run(fake, tmp_path, scenes(2))
    first, second = lines(tmp_path)
    (tmp_path / "manifest.jsonl").write_text(f"{first}\n{second}\n{first}\n")
    Store(tmp_path).close()
    assert lines(tmp_path) == [first, second]


def test_lines_stand_in_the_order_of_the_scene_file(fake, tmp_path):
    document = [named(scene) for scene in ("m", "b", "z", "a")]
    run(fake, tmp_path, document)
    assert ids(tmp_path) == ["m", "b", "z", "a"]
    run(fake, tmp_path, document[::-1], only=["b", "z"])
    assert ids(tmp_path) == ["a", "z", "b", "m"], "also of scenes that were not asked for"


def test_scenes_that_left_the_file_follow_by_id(fake, tmp_path):
    gone = [named(f"s{number}") for number in (7, 3, 9, 1, 8, 2, 6, 5, 4)]
    run(fake, tmp_path, [*gone, named("last")])
    run(fake, tmp_path, [named("last")])
    assert ids(tmp_path) == ["last", *(f"s{number}" for number in range(1, 10))]


def test_an_interrupted_batch_keeps_every_line_in_place(fake, tmp_path):
    run(fake, tmp_path, scenes(2))
    before = lines(tmp_path)
    until_done(fake, tmp_path, scenes(3)[::-1], "s2")
    assert lines(tmp_path)[:2] == before


def test_the_lock_names_its_holder_until_the_end(fake, tmp_path):
    batch = render(parse_scenes(scenes(1)), client_of(fake), tmp_path)
    next(batch)
    lock = tmp_path / ".cloudvid.lock"
    assert lock.read_text().startswith(f"process {os.getpid()} on ")
    list(batch)
    assert lock.read_text() == ""
    run(fake, tmp_path, scenes(1))


def test_the_lock_names_no_earlier_holder(tmp_path):
    """One that was killed left its name, which was longer."""
    lock = tmp_path / ".cloudvid.lock"
    lock.write_text(f"process 4194304 on {'a-long-name.' * 9}org\njobs 0123456789ab")
    manifest = Store(tmp_path)
    assert lock.read_text() == f"process {os.getpid()} on {socket.gethostname()}\njobs {manifest.batch}"
    assert manifest.left_behind == "0123456789ab"
    manifest.close()


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    victim, folder = tmp_path / "victim", tmp_path / "out"
    victim.write_text("precious")
    folder.mkdir()
    (folder / ".cloudvid.lock").symlink_to(victim)
    with pytest.raises(UnusableFolder, match=r"out cannot be used"):
        Store(folder)
    assert victim.read_text() == "precious"


def test_whoever_finds_a_folder_held_sweeps_nothing(tmp_path):
    manifest = Store(tmp_path)
    part = tmp_path / ".s0_video.mp4.0123abcd.part"
    part.write_bytes(b"half, so far")
    with pytest.raises(FolderInUse):
        Store(tmp_path)
    assert part.exists()
    manifest.close()


def test_who_holds_a_folder_is_told_without_steering_the_terminal(tmp_path):
    with (tmp_path / ".cloudvid.lock").open("w") as lock:
        lock.write("\x1b]0;x\x07process 1")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(FolderInUse) as raised:
            Store(tmp_path)
    assert "(\\x1b]0;x\\x07process 1)" in str(raised.value)


def test_nothing_is_added_to_a_manifest_that_is_closed(tmp_path):
    manifest = Store(tmp_path)
    manifest.add(Record(id="s0"))
    manifest.close(["s0"])
    manifest.add(Record(id="late"))
    manifest.close(["late"])
    assert ids(tmp_path) == ["s0"]


def test_a_manifest_that_is_a_link_is_not_followed(fake, tmp_path):
    victim = tmp_path / "victim"
    victim.touch()
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "manifest.jsonl").symlink_to(victim)
    events = run(fake, folder, scenes(1))
    assert [event.error for event in events if isinstance(event, SceneFailed)] == ["OutputError"]
    assert victim.read_bytes() == b""


def test_a_manifest_that_cannot_be_read_ends_the_run(fake, tmp_path):
    (tmp_path / "manifest.jsonl").mkdir()
    posts = fake.posts.total()
    with pytest.raises(UnusableFolder, match=r"manifest\.jsonl cannot be read: Is a directory"):
        run(fake, tmp_path, scenes(1))
    assert fake.posts.total() == posts
    (tmp_path / "manifest.jsonl").rmdir()
    assert run(fake, tmp_path, scenes(1))[-1].done == 1, "the lock was let go"


def test_an_entry_says_what_was_made(fake, tmp_path):
    run(fake, tmp_path, scenes(1))
    record = read_records(tmp_path)[0]["s0"]
    for entry in (record.t2i, record.i2v):
        assert entry.size == (tmp_path / entry.file).stat().st_size > 1000
    assert record.i2v.picture_sha256 == record.t2i.sha256
    assert record.t2i.picture_sha256 is None
    assert (record.t2i.model, record.i2v.model) == ("noise-t2i@1", "noise-i2v@1")
