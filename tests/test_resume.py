"""Resume: what is done and intact is skipped; what changed or is damaged is made again, and nothing else."""

import json
import os
import re
from pathlib import Path

import pytest

import cloudvid
from cloudvid import Client, RenderOptions, parse_scenes, render
from cloudvid.batch.events import BatchFinished, SceneDone, SceneFailed, SceneSkipped, StageStarted
from cloudvid.batch.media import read_recipe
from cloudvid_schema.files import sha256
from cloudvid_schema.protocol import Stage
from support.fake_server import error
from support.fake_torchserve import fake_torchserve
from support.folders import contents, scenes
from support.loopback import client_of

T2I, I2V = Stage.T2I, Stage.I2V


@pytest.fixture(scope="module")
def fake():
    with fake_torchserve() as fake:
        yield fake


def run(server, folder, document, **options):
    """Events of a run; and what was made: {(scene, stage): reason}."""
    client = client_of(server)
    events = list(render(parse_scenes(document), client, folder, RenderOptions(**options)))
    made = {(event.scene, event.stage): event.reason for event in events if isinstance(event, StageStarted)}
    return events, made


@pytest.fixture
def done(fake, tmp_path):
    """A finished batch of two scenes."""
    folder = tmp_path / "out"
    run(fake, folder, scenes(2))
    return folder


def test_scenes_can_be_dictionaries_as_in_a_scene_file(fake, done):
    finished = cloudvid.render_all(scenes(2), client_of(fake), done)
    assert (finished.skipped, finished.requests) == (2, 0)
    with pytest.raises(cloudvid.InvalidSceneFile, match=r"scenes\[1\].id: must be unique"):
        cloudvid.render_all([scenes(1)[0], scenes(1)[0]], client_of(fake), done)


def test_render_all_passes_every_event_on(fake, tmp_path):
    seen = []
    finished = cloudvid.render_all(parse_scenes(scenes(1)), client_of(fake), tmp_path, on_event=seen.append)
    assert seen[-1] is finished
    assert {"batch_started", "stage_progress", "scene_done"} <= {event.event for event in seen}
    assert cloudvid.render_all(scenes(2), client_of(fake), tmp_path, RenderOptions(only=["s0"])).skipped == 1


def test_a_finished_batch_makes_no_request_and_changes_no_byte(fake, done):
    before, posts = contents(done), dict(fake.posts)
    events, made = run(fake, done, scenes(2))
    assert made == {}
    assert dict(fake.posts) == posts
    assert contents(done) == before
    assert [event.scene for event in events if isinstance(event, SceneSkipped)] == ["s0", "s1"]
    assert events[-1] == BatchFinished(scenes=2, done=0, skipped=2, failed=0, requests=0, seconds=events[-1].seconds)


T2I_CHANGES = [
    ("t2i_params", "width", 128),
    ("t2i_params", "height", 72),
    ("t2i_params", "num_inference_steps", 3),
    ("t2i_params", "guidance_scale", 0.0),
    ("t2i_params", "guidance_scale", 7.0),
    ("t2i_params", "negative_prompt", "blurry"),
    ("t2i_params", "seed", 0),
    ("t2i_params", "seed", 4294967295),
    ("scene_desc", None, "another"),
    ("scene_desc", None, "scene 0 "),
]
I2V_CHANGES = [
    ("i2v_params", "width", 128),
    ("i2v_params", "height", 128),
    ("i2v_params", "fit", "pad"),
    ("i2v_params", "fit", "stretch"),
    ("i2v_params", "num_frames", 5),
    ("i2v_params", "num_inference_steps", 3),
    ("i2v_params", "fps", 12),
    ("i2v_params", "motion_bucket_id", 0),
    ("i2v_params", "noise_aug_strength", 0.0),
    ("i2v_params", "decode_chunk_size", 1),
    ("i2v_params", "min_guidance_scale", 0.0),
    ("i2v_params", "max_guidance_scale", 9.5),
    ("i2v_params", "seed", 0),
    ("i2v_params", "seed", 1),
    ("motion_desc", None, "it moves"),
]


def changed(section, name, value):
    document = json.loads(json.dumps(scenes(2)))
    if name is None:
        document[0][section] = value
    else:
        document[0][section][name] = value
    return document


@pytest.mark.parametrize(("section", "name", "value"), T2I_CHANGES)
def test_a_changed_picture_is_made_again_with_its_clip(fake, done, section, name, value):
    _, made = run(fake, done, changed(section, name, value))
    assert made == {("s0", T2I): "parameters changed", ("s0", I2V): "picture changed"}
    assert run(fake, done, changed(section, name, value))[1] == {}


@pytest.mark.parametrize(("section", "name", "value"), I2V_CHANGES)
def test_a_change_of_the_clip_makes_the_clip_alone_again(fake, done, section, name, value):
    _, made = run(fake, done, changed(section, name, value))
    assert made == {("s0", I2V): "parameters changed"}
    assert run(fake, done, changed(section, name, value))[1] == {}


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("t2i_params", "guidance_scale", 7.5),
        ("t2i_params", "negative_prompt", ""),
        ("i2v_params", "fps", 7),
        ("i2v_params", "fit", "crop"),
        ("i2v_params", "noise_aug_strength", 0.02),
        ("motion_desc", None, ""),
    ],
)
def test_a_default_that_is_spelled_out_changes_nothing(fake, done, section, name, value):
    assert run(fake, done, changed(section, name, value))[1] == {}


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGE = {
    "first bit": lambda path: flip(path, 0),
    "middle bit": lambda path: flip(path, path.stat().st_size // 2),
    "last bit": lambda path: flip(path, -1),
    "cut by one": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one more byte": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "emptied": empty,
    "deleted": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("stage", list(Stage))
def test_only_a_damaged_file_is_made_again(fake, done, damage, stage):
    before = contents(done)
    DAMAGE[damage](done / ("s1_base_image.png" if stage is T2I else "s1_video.mp4"))
    _, made = run(fake, done, scenes(2))
    assert made == {("s1", stage): "file missing" if damage == "deleted" else "file damaged"}
    assert contents(done) == before


def test_a_changed_model_makes_its_stage_again(done):
    for stage, made_again in (
        (I2V, {("s0", I2V), ("s1", I2V)}),
        (T2I, {(s, stage) for s in ("s0", "s1") for stage in Stage}),
    ):
        identities = {each: f"noise-{each}@{2 if each is stage else 1}" for each in Stage}
        identities[I2V] = f"noise-i2v@{2}"
        with fake_torchserve(identities=identities) as other:
            _, made = run(other, done, scenes(2))
        assert set(made) == made_again
        assert made["s0", stage] == "model changed"


def test_files_whose_times_lie_years_away_are_still_done(fake, done):
    for path in done.iterdir():
        os.utime(path, (4e9, 4e9))
    assert run(fake, done, scenes(2))[1] == {}
    for path in done.iterdir():
        os.utime(path, (1, 1))
    assert run(fake, done, scenes(2))[1] == {}


def test_no_decision_can_depend_on_a_clock_that_jumps():
    """Nothing that makes a batch reads the wall clock or a file's times. (doctor does: keys expire by the clock; the
    others tell people when something happened.)
    """
    for source in (Path(cloudvid.__file__).parent).rglob("*.py"):
        shows_times = source.name in ("doctor.py", "state.py", "local.py", "views.py")
        assert shows_times or not re.search(r"time\.time\(|datetime|st_mtime|getmtime", source.read_text()), source


def test_a_folder_in_a_files_place_fails_only_that_scene(fake, done):
    (done / "s0_video.mp4").unlink()
    (done / "s0_video.mp4").mkdir()
    events, _ = run(fake, done, scenes(3))
    assert [(event.scene, event.error) for event in events if isinstance(event, SceneFailed)] == [("s0", "OutputError")]
    assert (done / "s2_video.mp4").is_file()


def test_an_output_folder_may_be_a_link(fake, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")
    run(fake, tmp_path / "out", scenes(1))
    assert run(fake, tmp_path / "out", scenes(1))[1] == {}


def test_a_link_is_replaced_and_not_followed(fake, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/s0_base_image.png").symlink_to(victim)
    run(fake, tmp_path / "out", scenes(1))
    assert victim.read_text() == "precious"
    assert not (tmp_path / "out/s0_base_image.png").is_symlink()


def test_a_record_that_names_another_file_counts_for_nothing(fake, done):
    manifest = done / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace('"s0_base_image.png"', '"../s1_base_image.png"'))
    assert run(fake, done, scenes(2))[1] == {("s0", T2I): "new"}


def test_a_picture_damaged_before_its_clip_is_drawn_again(tmp_path):
    """The damage comes while the clip's first try is answered with `busy`."""
    folder, left = tmp_path / "out", [1]

    def fault(stage, body):
        if stage is I2V and left and left.pop():
            flip(folder / "s0_base_image.png", 100)
            return error(503, "ServiceUnavailableException")
        return None

    with fake_torchserve(fault=fault) as server:
        client = client_of(server)
        list(render(parse_scenes(scenes(1)), client, folder, wait=lambda attempt: 0.0))
        assert run(server, folder, scenes(1))[1] == {}
    assert read_recipe(folder / "s0_video.mp4")["picture"]["sha256"] == sha256(folder / "s0_base_image.png")


def test_a_picture_that_changes_again_and_again_fails(tmp_path):
    """It is drawn again once; whatever changes it is at work in the folder."""
    folder, left = tmp_path / "out", [3]

    def fault(stage, body):
        if stage is I2V and left[0]:
            left[0] -= 1
            flip(folder / "s0_base_image.png", 100)
            return error(503, "ServiceUnavailableException")
        return None

    with fake_torchserve(fault=fault) as server:
        events = list(render(parse_scenes(scenes(1)), client_of(server), folder, wait=lambda attempt: 0.0))
        assert server.posts == {T2I: 2, I2V: 2}
    (failed,) = [event for event in events if isinstance(event, SceneFailed)]
    assert (failed.stage, failed.error) == (I2V, "PictureChanged")


def test_a_model_change_seen_in_an_answer_redoes_skipped_scenes(done):
    identities = {T2I: "noise-t2i@1", I2V: "noise-i2v@2"}
    with fake_torchserve(identities=identities) as other:
        client = Client(other.url, management="http://127.0.0.1:1", token="t")
        document = scenes(3)
        list(render(parse_scenes(document), client, done))
        assert run(other, done, document)[1] == {}


@pytest.mark.parametrize("tail", [b'{"id":"s0","t2i', b"\xff\xfe", b"\n\n", b"null\n", b"{}\n", b'{"id":"zz"}'])
def test_a_cut_manifest_is_read_up_to_the_cut(fake, done, tail):
    before = contents(done)
    with (done / "manifest.jsonl").open("ab") as stream:
        stream.write(tail)
    assert run(fake, done, scenes(2))[1] == {}
    assert contents(done)["manifest.jsonl"].startswith(before["manifest.jsonl"])


def test_a_scene_whose_line_is_lost_is_made_again(fake, done):
    before = contents(done)
    lines = (done / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    (done / "manifest.jsonl").write_bytes(lines[1])
    assert run(fake, done, scenes(2))[1] == {("s0", T2I): "new", ("s0", I2V): "new"}
    assert contents(done) == before


def test_a_new_scene_is_the_only_one_made(fake, done):
    assert set(run(fake, done, scenes(3))[1]) == {("s2", T2I), ("s2", I2V)}


def test_scenes_in_another_order_are_still_done(fake, done):
    assert run(fake, done, scenes(2)[::-1])[1] == {}


def test_a_scene_that_left_the_file_keeps_its_record(fake, done):
    run(fake, done, scenes(2)[1:])
    assert run(fake, done, scenes(2))[1] == {}


def test_force_makes_everything_again_and_the_same_bytes(fake, done):
    before = contents(done)
    _, made = run(fake, done, scenes(2), force=True)
    assert set(made.values()) == {"forced"}
    assert len(made) == 4
    assert contents(done) == before


def test_only_makes_the_scenes_that_are_named(fake, tmp_path):
    events, made = run(fake, tmp_path, scenes(3), only=["s1"])
    assert {scene for scene, _ in made} == {"s1"}
    assert [event.scene for event in events if isinstance(event, SceneDone)] == ["s1"]


def test_a_file_without_metadata_is_another_file(fake, done):
    _, made = run(fake, done, scenes(2), embed_recipe=False)
    assert len(made) == 4
    assert b"noise-t2i" not in (done / "s0_base_image.png").read_bytes()


def test_an_unfinished_file_of_a_crash_is_removed(fake, done):
    (done / ".s0_video.mp4.0123abcd.part").write_bytes(b"half")
    run(fake, done, scenes(2))
    assert not [path for path in done.iterdir() if path.suffix == ".part"]
