"""Scene files: what is read, and every fault with its place."""

import json

import jsonschema
import pytest

from cloudvid import InvalidSceneFile, parse_scenes, read_scenes
from cloudvid.batch.manifest import request_digest
from cloudvid.batch.scenes import scene_schema, seed_of
from cloudvid_schema.protocol import MAX_METADATA_BYTES, Stage
from support.hostile_ids import hostile_ids

GOOD = {"id": "a1", "scene_desc": "a cat"}


def scene(**values):
    return [{**GOOD, **values}]


def t2i(**values):
    return scene(t2i_params=values)


def i2v(**values):
    return scene(i2v_params=values)


BAD = [
    ({}, "scenes: must be a JSON array of scenes"),
    ([], "scenes: must have at least one scene"),
    ({"scenes": [GOOD], "scnes": 1}, "scnes: is not known; did you mean scenes?"),
    ({"scenes": [GOOD], "": 1}, '"": is not known'),
    ({"scenes": [GOOD], "a\x1b[2J\n": 1}, '"a\\u001b[2J\\n": is not known'),
    ({"scenes": [GOOD], "\ud800": 1}, '"\\ud800": is not known'),
    ({"scenes": [GOOD], "$schema": 7}, "$schema: must be a string, got 7"),
    ({"shots": [{"prompt": "a cat"}]}, "shots: is not known; did you mean scenes?"),
    ({"scenes": {"a": 1}}, "scenes: must be a JSON array of scenes"),
    (GOOD, "is a single scene; put [ ] around it"),
    ([7], "scenes[0]: must be a JSON object, got 7"),
    ([{"id": "a"}], "scenes[0].scene_desc: is required"),
    ([{"scene_desc": "a"}], "scenes[0].id: is required"),
    (scene(scene_desc=""), "scenes[0].scene_desc: must have at least 1 character(s)"),
    (scene(scene_desc="  "), "scenes[0].scene_desc: must not be blank"),
    (scene(scene_desc="x" * 2001), "scenes[0].scene_desc: must have at most 2000 characters"),
    (scene(scene_desc=None), "scenes[0].scene_desc: is required"),
    (scene(motion=None), "scenes[0].motion: is not known"),
    (scene(motion_desc=3), "scenes[0].motion_desc: must be a string, got 3"),
    (scene(motion="x"), "scenes[0].motion: is not known; did you mean motion_desc?"),
    ([{"scene_id": "a", "prompt": "b"}], "scenes[0].scene_id: is not known; did you mean id?"),
    (scene(sceneNumber=1), "scenes[0].sceneNumber: is not known; did you mean id?"),
    (scene(prompt="b"), "scenes[0].prompt: is not known; did you mean scene_desc?"),
    (scene(imagePrompt="b"), "scenes[0].imagePrompt: is not known; did you mean scene_desc?"),
    (scene(seed=1), "scenes[0].seed: is not known; did you mean t2i_params.seed?"),
    (scene(width=64), "scenes[0].width: is not known; did you mean t2i_params.width?"),
    (scene(steps=3), "scenes[0].steps: is not known; did you mean t2i_params.num_inference_steps?"),
    (scene(cfg=3), "scenes[0].cfg: is not known; did you mean t2i_params.guidance_scale?"),
    (scene(fps=6), "scenes[0].fps: is not known; did you mean i2v_params.fps?"),
    (t2i(steps=3), "scenes[0].t2i_params.steps: is not known; did you mean num_inference_steps?"),
    (i2v(frames=3), "scenes[0].i2v_params.frames: is not known; did you mean num_frames?"),
    (i2v(fps=0), 'scenes[0].i2v_params.fps: must be at least 1, got 0 (scene "a1")'),
    (scene(id=7), "scenes[0].id: must be a string, got 7"),
    (scene(id=""), "scenes[0].id: must be 1 to 100 letters"),
    (
        scene(id="../up"),
        "scenes[0].id: must be 1 to 100 letters, digits, '.', '_' or '-', the first a letter or digit, got \"../up\"",
    ),
    (scene(id="a/b"), "scenes[0].id: must be 1 to 100 letters"),
    (scene(id=".hidden"), "scenes[0].id: must be 1 to 100 letters"),
    (scene(id="a\n"), "scenes[0].id: must be 1 to 100 letters"),
    (scene(id="a\x00b"), "scenes[0].id: must be 1 to 100 letters"),
    (scene(id="é"), "scenes[0].id: must be 1 to 100 letters"),
    (scene(id="x" * 101), "scenes[0].id: must be 1 to 100 letters"),
    (scene(id="end."), "scenes[0].id: must not end with a dot"),
    (scene(id="NUL"), "scenes[0].id: must not be a device name"),
    (scene(id="com1.tar"), "scenes[0].id: must not be a device name"),
    (
        [GOOD, {**GOOD, "id": "b"}, {**GOOD, "id": "A1"}],
        'scenes[2].id: must be unique, whatever the case; scenes[0] has it, got "A1"',
    ),
    (t2i(prompt="x"), "scenes[0].t2i_params.prompt: is not known"),
    (t2i(width=100), "scenes[0].t2i_params.width: must be a multiple of 8, got 100"),
    (t2i(num_inference_steps=True), "scenes[0].t2i_params.num_inference_steps: must be an integer, got true"),
    (t2i(guidance_scale="7"), 'scenes[0].t2i_params.guidance_scale: must be a number, got "7"'),
    (scene(t2i_params=[]), "scenes[0].t2i_params: must be a JSON object, got []"),
    (i2v(fps=0), "scenes[0].i2v_params.fps: must be at least 1, got 0"),
    (i2v(numframes=8), "scenes[0].i2v_params.numframes: is not known; did you mean num_frames?"),
    (i2v(**{"": 1}), 'scenes[0].i2v_params."": is not known; known are decode_chunk_size'),
    (i2v(**{"\ud800": 1}), 'scenes[0].i2v_params."\\ud800": is not known; known are decode_chunk_size'),
    (i2v(fit="fill"), "scenes[0].i2v_params.fit: must be 'crop', 'pad' or 'stretch'"),
]


@pytest.mark.parametrize(("document", "fault"), BAD)
def test_a_bad_scene_file_names_the_place_and_the_value(document, fault):
    with pytest.raises(InvalidSceneFile) as raised:
        parse_scenes(document)
    assert [line for line in str(raised.value).splitlines() if line.startswith(fault)], raised.value


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"", "not JSON: it is empty"),
        (b"[{]", "not JSON: Expecting property name enclosed in double quotes at line 1, column 3"),
        (b"\xff\xfe", "not UTF-8: this is UTF-16; save it as UTF-8"),
        ("[]".encode("utf-16-be"), "not UTF-8: this is UTF-16"),
        ("[]".encode("utf-32"), "not UTF-8: this is UTF-32"),
        (b'[\n"\xc3\xa9 \xe9"]', "not UTF-8: byte 0xe9 at line 2, column 4"),
        (b'{"id": 1}\n{"id": 2}', "a second value begins (JSON Lines? put [ ] around all lines"),
        (b'{"id": 1}\n{"id": 2}', "and commas between them) at line 2, column 1"),
        (b"[\n // first\n]", "comments are not JSON at line 2, column 2"),
        (b'[{"id": "a" # first\n}]', "comments are not JSON at line 1, column 13"),
        (b"[1, /* two */ 2]", "comments are not JSON at line 1, column 5"),
        (b"[1,\n\n]", "a comma stands before the end of an array or object at line 1, column 3"),
        (b'[{"id": 1,}]', "a comma stands before the end of an array or object at line 1, column 10"),
        (b"[1,,2]", "Expecting value at line 1, column 4"),
        (b"```json\n[]\n```", "a fence of Markdown is not JSON at line 1, column 1"),
        (b"[]\n```", "a fence of Markdown is not JSON at line 2, column 1"),
        (b"[{'id': 1}]", "strings have double quotes at line 1, column 3"),
        (b'["a\nb"]', "a string holds a control character (in JSON \\n) at line 1, column 4"),
        (b"id,scene_desc\na,b", 'JSON begins with [ or {, this with "id,scene_desc\\na,b" at line 1, column 1'),
        (b'[{"id":"a","id":"b","scene_desc":"c"}]', 'key "id" stands twice'),
        (
            b'[{"a": {"b": 1}, "c": [{"b": 1}],\n"\\u0061": 2}]',
            'key "a" stands twice in one object, at line 2, column 1',
        ),
        (b'[{"id":"a","id":"a","scene_desc":"c"}]', 'key "id" stands twice'),
        (b'[{"id":"a","scene_desc":"c","t2i_params":{"guidance_scale":NaN}}]', "must be finite, got NaN"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_file_without_scenes_is_refused_by_name(tmp_path, text, fault):
    path = tmp_path / "scenes.json"
    path.write_bytes(text)
    with pytest.raises(InvalidSceneFile) as raised:
        read_scenes(path)
    assert str(raised.value).startswith(str(path))
    assert fault in str(raised.value)


def test_a_missing_file_is_a_fault_of_its_own(tmp_path):
    with pytest.raises(InvalidSceneFile, match="No such file"):
        read_scenes(tmp_path / "none.json")


def test_hostile_ids_are_refused_by_place():
    names = hostile_ids()
    with pytest.raises(InvalidSceneFile) as raised:
        parse_scenes([{**GOOD, "id": name} for name in names])
    assert {fault.place for fault in raised.value.faults} == {f"scenes[{index}].id" for index in range(len(names))}


def test_every_fault_of_a_file_is_reported_at_once():
    document = [
        {"id": "x/y", "scene_desc": "", "i2v_params": {"fps": "six"}},
        {"id": "b"},
        {**GOOD, "t2i_params": {"width": 1}},
    ]
    with pytest.raises(InvalidSceneFile) as raised:
        parse_scenes(document)
    places = {fault.place for fault in raised.value.faults}
    assert places == {
        "scenes[0].id",
        "scenes[0].scene_desc",
        "scenes[0].i2v_params.fps",
        "scenes[1].scene_desc",
        "scenes[2].t2i_params.width",
    }


def test_a_fault_that_many_scenes_share_is_one_line():
    document = [
        {"id": f"s{index}", "scene_desc": "a", "seed": 1, "t2i_params": {"width": 8 * index}} for index in range(3)
    ]
    with pytest.raises(InvalidSceneFile) as raised:
        parse_scenes(document)
    assert len(raised.value.faults) == 6
    assert str(raised.value).splitlines() == [
        'scenes[0].t2i_params.width: must be at least 64, got 0 (scene "s0")',
        'scenes[0].seed: is not known; did you mean t2i_params.seed? (scene "s0" and 2 more scenes)',
        'scenes[1].t2i_params.width: must be at least 64, got 8 (scene "s1")',
        'scenes[2].t2i_params.width: must be at least 64, got 16 (scene "s2")',
    ]


def test_an_array_and_an_object_read_the_same():
    assert parse_scenes([GOOD]) == parse_scenes({"$schema": "x.json", "scenes": [GOOD]})


def test_null_and_whole_floats_mean_what_tables_mean_by_them():
    scenes = scene(
        motion_desc=None,
        t2i_params={"negative_prompt": None, "width": 512.0, "num_inference_steps": 3e1, "seed": 7.0},
        i2v_params=None,
    )
    (found,), (plain,) = parse_scenes({"$schema": None, "scenes": scenes}), parse_scenes(t2i(seed=7))
    assert found == plain
    assert request_digest(found.t2i_request()) == request_digest(plain.t2i_request())
    jsonschema.validate({"$schema": None, "scenes": scenes}, scene_schema())


def test_a_byte_order_mark_does_no_harm(tmp_path):
    path = tmp_path / "scenes.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps([GOOD]).encode())
    assert read_scenes(path)[0].id == "a1"


def test_each_stage_derives_a_stable_seed_from_the_id():
    (first,), (second,) = parse_scenes([GOOD]), parse_scenes([GOOD])
    assert first.t2i_request().seed == second.t2i_request().seed == seed_of(Stage.T2I, "a1")
    assert first.t2i_request().seed != first.i2v_request().seed


def test_a_seed_that_is_given_is_kept_even_zero():
    (found,) = parse_scenes(t2i(seed=0))
    assert found.t2i_request().seed == 0


def test_the_longest_id_and_motion_fit_the_clips_metadata():
    (found,) = parse_scenes(scene(id="x" * 100, motion_desc="\x01" * 1000))
    assert len(json.dumps(found.i2v_request().metadata)) < MAX_METADATA_BYTES
