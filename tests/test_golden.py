"""What one version writes the next one reads: seeds, digests of requests, a manifest's line."""

import hashlib
import json
import shutil

import pytest
from pydantic import create_model

from cloudvid import parse_scenes, render
from cloudvid.batch import manifest
from cloudvid.batch.events import SceneSkipped, StageStarted
from cloudvid.batch.manifest import request_digest
from cloudvid.batch.plan import make_plan
from cloudvid_schema.protocol import ImageToVideoRequest, TextToImageRequest
from support import ROOT
from support.fake_torchserve import fake_torchserve
from support.folders import contents
from support.golden import DIGESTS_WITH_DEFAULTS, FILES, MANIFEST_LINE, REQUEST_DIGESTS, REQUESTS, SCENE, SEEDS
from support.loopback import client_of

DATA = ROOT / "tests/data"
KINDS = {"t2i": TextToImageRequest, "i2v": ImageToVideoRequest}


def test_digests_of_requests_are_frozen():
    digests = {name: request_digest(KINDS[stage](**values)) for name, (stage, values) in REQUESTS.items()}
    assert digests == REQUEST_DIGESTS, "see golden.py before you change it"


@pytest.mark.parametrize(("stage", "values"), REQUESTS.values(), ids=REQUESTS)
def test_a_parameter_added_with_a_default_changes_no_digest(stage, values, monkeypatch):
    later = create_model("Later", __base__=KINDS[stage], strength=(float, 0.5))
    before = request_digest(KINDS[stage](**values))
    monkeypatch.setitem(manifest._DEFAULTS, stage == "t2i", manifest._defaults(later))
    assert request_digest(later(**values)) == before
    assert request_digest(later(**values, strength=0.5)) == before
    assert request_digest(later(**values, strength=0.6)) != before


@pytest.mark.parametrize(("stage", "values"), REQUESTS.values(), ids=REQUESTS)
def test_every_parameter_that_differs_from_its_default_counts(stage, values):
    request = KINDS[stage](**values)
    changed = {
        "prompt": "b",
        "negative_prompt": "b",
        "fit": "stretch",
        "metadata": {"a": 1},
        "embed_recipe": not request.embed_recipe,
    }
    digests = {request_digest(request)}
    for name in KINDS[stage].model_fields:
        other = changed.get(name, 8 * 17 if name != "seed" else 99)
        digests.add(request_digest(request.model_copy(update={name: other})))
    assert len(digests) == 1 + len(KINDS[stage].model_fields)


@pytest.mark.parametrize(("stage", "scene"), SEEDS)
def test_a_scene_without_a_seed_keeps_its_seed_for_good(stage, scene):
    (found,) = parse_scenes([{"id": scene, "scene_desc": "a"}])
    request = found.t2i_request() if stage == "t2i" else found.i2v_request()
    assert request.seed == SEEDS[stage, scene]


def test_seeds_reach_every_bit_of_their_range():
    scenes = parse_scenes([{"id": f"s{index}", "scene_desc": "a"} for index in range(200)])
    seeds = [request.seed for scene in scenes for request in (scene.t2i_request(), scene.i2v_request())]
    assert len(set(seeds)) == 400
    for bit in range(32):
        assert {seed >> bit & 1 for seed in seeds} == {0, 1}, bit


@pytest.mark.parametrize("digests", [REQUEST_DIGESTS, DIGESTS_WITH_DEFAULTS], ids=["now", "of 51869a4"])
def test_a_batch_that_an_earlier_version_recorded_is_done(digests, tmp_path):
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
    line = json.loads(json.dumps(MANIFEST_LINE))
    line["t2i"]["request_sha256"] = digests["the scene's picture"]
    line["i2v"]["request_sha256"] = digests["the scene's clip"]
    (tmp_path / "manifest.jsonl").write_text(json.dumps(line) + "\n")
    with fake_torchserve() as server:
        events = list(render(parse_scenes([SCENE]), client_of(server), tmp_path))
        assert server.posts.total() == 0
    assert [event.scene for event in events if isinstance(event, SceneSkipped)] == ["tea_house"]
    assert not [event for event in events if isinstance(event, StageStarted)]
    assert "1 done" in (tmp_path / "index.html").read_text()


@pytest.fixture
def finished(tmp_path):
    """The scenes and the output folder of a batch that 51869a4 finished; its digests cover the defaults too."""
    shutil.copytree(DATA / "finished_by_51869a4", tmp_path, dirs_exist_ok=True)
    return json.loads((tmp_path / "scenes.json").read_text()), tmp_path / "output"


def test_a_folder_that_51869a4_finished_is_finished(finished):
    document, folder = finished
    before = contents(folder)
    recorded, _ = manifest.read_records(folder)
    for scene in parse_scenes(document):
        assert recorded[scene.id].t2i.request_sha256 != request_digest(scene.t2i_request())
        assert recorded[scene.id].i2v.request_sha256 != request_digest(scene.i2v_request())
    with fake_torchserve() as server:
        plan = make_plan(parse_scenes(document), folder, {})
        events = list(render(parse_scenes(document), client_of(server), folder))
        assert server.posts.total() == 0
    assert {stage.reason for stage in plan.stages} == {None}
    assert sorted(event.scene for event in events if isinstance(event, SceneSkipped)) == sorted(recorded)
    after = contents(folder)
    assert b"3 done" in after.pop("index.html")
    before.pop("index.html")
    assert after.pop(".cloudvid.lock") == b""
    assert after == before


def test_a_change_to_a_scene_of_51869a4_is_seen(finished):
    document, folder = finished
    document[0]["i2v_params"]["fps"] = 8
    document[1]["t2i_params"]["guidance_scale"] = 7.5
    with fake_torchserve() as server:
        events = list(render(parse_scenes(document), client_of(server), folder))
    runs = {(event.scene, event.stage): event.reason for event in events if isinstance(event, StageStarted)}
    assert runs == {
        ("harbour", "i2v"): "parameters changed",
        ("night-market.2", "t2i"): "parameters changed",
        ("night-market.2", "i2v"): "picture changed",
    }
    assert [event.scene for event in events if isinstance(event, SceneSkipped)] == ["square"]


def test_a_manifest_has_the_format_of_earlier_versions(tmp_path):
    with fake_torchserve() as server:
        list(render(parse_scenes([SCENE]), client_of(server), tmp_path))
    picture, clip = ((tmp_path / name).read_bytes() for name in FILES)
    expected = json.loads(json.dumps(MANIFEST_LINE))
    for entry, data in ((expected["t2i"], picture), (expected["i2v"], clip)):
        entry.update(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    expected["i2v"]["picture_sha256"] = expected["t2i"]["sha256"]
    text = (tmp_path / "manifest.jsonl").read_text()
    assert text == json.dumps(expected, separators=(",", ":")) + "\n"
