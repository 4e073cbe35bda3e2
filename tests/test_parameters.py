"""The schema: rules, their wording, and the body forms."""

import base64
import json
import math

import pytest
from pydantic import ValidationError

from cloudvid_schema.faults import faults_of
from cloudvid_schema.parameters import ImageToVideoParameters, TextToImageParameters
from cloudvid_schema.protocol import (
    MAX_IMAGE_BYTES,
    MAX_METADATA_BYTES,
    MAX_PARAMETERS_BYTES,
    ImageToVideoRequest,
    RequestError,
    Stage,
)
from cloudvid_serving import bodies


def faults(model, **values):
    with pytest.raises(ValidationError) as raised:
        model.model_validate(values)
    return [str(fault) for fault in faults_of(raised.value, model)]


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"width": 1001}, "width: must be a multiple of 8, got 1001"),
        ({"width": 56}, "width: must be at least 64, got 56"),
        ({"height": 4096}, "height: must be at most 2048, got 4096"),
        ({"width": "512"}, 'width: must be an integer, got "512"'),
        ({"width": True}, "width: must be an integer, got true"),
        ({"num_inference_steps": 1.5}, "num_inference_steps: must be an integer, got 1.5"),
        ({"guidance_scale": math.nan}, "guidance_scale: must be finite, got NaN"),
        ({"guidance_scale": math.inf}, "guidance_scale: must be finite, got Infinity"),
        ({"guidance_scale": False}, "guidance_scale: must be a number, got false"),
        ({"seed": -1}, "seed: must be at least 0, got -1"),
        ({"seed": 2**32}, "seed: must be at most 4294967295, got 4294967296"),
        ({"prompt": ""}, 'prompt: must have at least 1 character(s), got ""'),
        ({"prompt": " \n"}, 'prompt: must not be blank, got " \\n"'),
        ({"prompt": "\ud800"}, "prompt: must be valid Unicode"),
        ({"guidance": 7}, "guidance: is not known; did you mean guidance_scale?"),
        ({"zzz": 1}, "zzz: is not known; known are"),
    ],
)
def test_a_text_to_image_fault_names_place_rule_and_value(values, fault):
    (found,) = faults(TextToImageParameters, **{"prompt": "a", **values})
    assert found.startswith(fault)


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"width": 100}, "width: must be a multiple of 64, got 100"),
        ({"fit": "squash"}, "fit: must be 'crop', 'pad' or 'stretch', got \"squash\""),
        ({"fps": 0}, "fps: must be at least 1, got 0"),
        ({"num_frames": 1}, "num_frames: must be at least 2, got 1"),
        ({"motion_bucket_id": 256}, "motion_bucket_id: must be at most 255, got 256"),
        ({"min_guidance_scale": 3, "max_guidance_scale": 2}, "max_guidance_scale: must be at least min_guidance_scale"),
        ({"min_guidance_scale": 4}, "max_guidance_scale: must be at least min_guidance_scale (4.0), got 3.0"),
    ],
)
def test_an_image_to_video_fault_names_place_rule_and_value(values, fault):
    (found,) = faults(ImageToVideoParameters, **values)
    assert found.startswith(fault)


def test_zero_guidance_stays_zero():
    assert TextToImageParameters(prompt="a", guidance_scale=0.0).guidance_scale == 0.0


def test_beyond_twenty_faults_the_rest_is_counted():
    values = {f"unknown_{number:02}": 1 for number in range(25)}
    found = faults(TextToImageParameters, prompt="a", **values)
    assert len(found) == 21
    assert found[19].startswith("unknown_19: is not known")
    assert found[20] == "5 more faults"
    assert len(faults(TextToImageParameters, prompt="a", **dict(list(values.items())[:20]))) == 20


def test_beyond_a_thousand_faults_they_are_only_counted():
    values = {f"unknown_{number}": 1 for number in range(1001)}
    assert faults(TextToImageParameters, prompt="a", **values) == ["has 1001 faults"]


def test_the_longest_valid_parameters_are_within_the_limits_of_size():
    clef = "\U0001d11e"
    values = {"prompt": clef * 2000, "negative_prompt": clef * 2000, "metadata": {clef * 2000: [0] * 90}}
    text = json.dumps({**values, "metadata": {"x": "," * 8100}, "prompt": "," * 2000, "negative_prompt": "{" * 2000})
    for form in (json.dumps(values), text):
        assert bodies.read(Stage.T2I, body("application/json", form.encode()))
    assert len(json.dumps(values)) < MAX_PARAMETERS_BYTES / 2


def test_every_fault_is_reported_at_once():
    assert len(faults(TextToImageParameters, width=1, height=1, seed="x")) == 4


def body(content_type, content=b"", **fields):
    return bodies.Body(content_type, {name: value.encode() for name, value in fields.items()}, content)


def test_the_three_body_forms_of_i2v_mean_the_same():
    picture = b"\x89PNG..."
    forms = [
        bodies.Body(
            "multipart/form-data", {"image": picture, "fps": b"6", "fit": b"pad", "noise_aug_strength": b"0.5"}
        ),
        bodies.Body(
            "multipart/form-data", {"image": picture, "parameters": b'{"fps":6,"fit":"pad","noise_aug_strength":0.5}'}
        ),
        body("image/png", picture, fps="6", fit="pad", noise_aug_strength="0.5"),
        body(
            "application/json",
            json.dumps(
                {"image": base64.b64encode(picture).decode(), "fps": 6, "fit": "pad", "noise_aug_strength": 0.5}
            ).encode(),
        ),
    ]
    read = [bodies.read(Stage.I2V, form) for form in forms]
    assert all(pair == read[0] for pair in read)
    assert read[0][1] == picture
    assert read[0][0].fps == 6


def test_whole_floats_and_null_mean_the_same_in_every_form():
    values = b'{"fps": 6.0, "seed": 7e0, "noise_aug_strength": null, "fit": null}'
    forms = [
        bodies.Body(
            "multipart/form-data", {"image": b"x", "fps": b"6.0", "seed": b"7e0", "noise_aug_strength": b"null"}
        ),
        bodies.Body("multipart/form-data", {"image": b"x", "parameters": values}),
        body("application/json", b'{"image": "eA==", ' + values[1:]),
    ]
    expected = ImageToVideoRequest(fps=6, seed=7)
    assert [bodies.read(Stage.I2V, form) for form in forms] == [(expected, b"x")] * 3
    with pytest.raises(RequestError, match="image: is required"):
        bodies.read(Stage.I2V, body("application/json", b'{"image": null}'))


@pytest.mark.parametrize(
    ("form", "code", "message"),
    [
        (body("text/plain", b"a"), 415, "Content-Type must be one of application/json; got text/plain"),
        (body("", b"a"), 415, "got none"),
        (body("text/\x1bplain", b"a"), 415, 'got "text/\\u001bplain"'),
        (bodies.Body("application/json", {"": b"1"}, b'{"": 1}'), 422, '"": is given twice'),
        (bodies.Body("application/json", {"\n": b"\xff"}, b"{}"), 422, '"\\n": is not known'),
        (bodies.Body("application/json", {"prompt": b"\xff"}, b"{}"), 422, "prompt: must be UTF-8"),
        (body("application/json", b""), 400, "the body is empty"),
        (body("application/json", b"{"), 400, "body: not JSON"),
        (body("application/json", b"\xff"), 400, "not UTF-8"),
        (body("application/json", b"[1]"), 400, "must be a JSON object, got [1]"),
        (body("application/json", b'{"a":' * 5000), 400, "nested too deeply"),
        (body("application/json", b'{"prompt":"a","prompt":"b"}'), 400, 'key "prompt" stands twice'),
        (body("application/json", b'{"prompt":"a","prompt":"a"}'), 400, 'key "prompt" stands twice'),
        (body("application/json", b'{"prompt":"a","metadata":{"x":null,"x":null}}'), 400, 'key "x" stands twice'),
        (body("application/json", b'{"prompt":"a","seed":' + b"9" * 5000 + b"}"), 400, "not JSON"),
        (body("application/json", b'{"prompt":"a","guidance_scale":1e999}'), 422, "guidance_scale: must be finite"),
        (body("application/json", b'{"prompt":"a","seed":1}', seed="2"), 422, "seed: is given twice"),
        (
            body("application/json", json.dumps({"prompt": "a", "metadata": {"x": "y" * MAX_METADATA_BYTES}}).encode()),
            422,
            "metadata: must be at most 8192 bytes as JSON; this has 8200 bytes",
        ),
        (body("application/json", b'{"prompt":"' + b"x" * 2**18 + b'"}'), 413, "at most 262144 bytes, got 262157"),
        (body("application/json", b'{"prompt":"a"}', metadata="x" * 2**18), 413, "at most 262144 bytes, got 262158"),
        (body("application/json", b'{"prompt":[' + b"[]," * 9000 + b"0]}"), 413, "at most 16384 values, got 18002"),
        (body("application/json", b"{}", **{f"a{n}": "1" for n in range(33)}), 413, "at most 32 fields, got 33"),
        (body("application/json", b'{"prompt":"a","metadata":[]}'), 422, "metadata: must be a JSON object"),
        (body("application/json", b'{"prompt":"a","metadata":{"x":NaN}}'), 422, "metadata: must be plain JSON"),
    ],
)
def test_a_bad_t2i_body_gets_its_status_and_reason(form, code, message):
    with pytest.raises(RequestError) as raised:
        bodies.read(Stage.T2I, form)
    assert raised.value.body.code == code
    assert message in raised.value.body.message


@pytest.mark.parametrize(
    ("form", "code", "message"),
    [
        (body("multipart/form-data", fps="6"), 422, "image: is required"),
        (bodies.Body("multipart/form-data", {"file": b"\x89PNG"}), 422, "image: is required; file: is not known"),
        (body("image/png", b""), 400, "the body is empty"),
        (body("application/json", b"{}"), 422, "image: is required"),
        (body("application/json", b'{"image":"!!"}'), 422, "image: must be base64"),
        (body("application/json", b'{"image":7}'), 422, "image: must be a base64 string, got 7"),
        (body("multipart/form-data", image="x", fps="6.5"), 422, "fps: must be an integer, got 6.5"),
        (body("multipart/form-data", image="x", fps="six"), 422, 'fps: must be an integer, got "six"'),
        (body("multipart/form-data", image="x", fps="true"), 422, "fps: must be an integer, got true"),
        (body("multipart/form-data", image="x", noise_aug_strength="nan"), 422, "noise_aug_strength: must be a number"),
        (body("multipart/form-data", image="x", parameters="[]"), 400, "the parameters must be a JSON object"),
        (body("multipart/form-data", image="x", parameters="[" * 2**18 + "]"), 413, "at most 262144 bytes, got 262145"),
        (body("image/png", b"x", metadata="[" * 2**18 + "]"), 413, "at most 262144 bytes, got 262145"),
        (body("application/json", b'{"image":[' + b"[]," * 9000 + b"0]}"), 413, "at most 16384 values, got 18002"),
        (body("image/png", b"x" * (MAX_IMAGE_BYTES + 1)), 413, "image: must be at most 33554432 bytes"),
    ],
)
def test_a_bad_i2v_body_gets_its_status_and_reason(form, code, message):
    with pytest.raises(RequestError) as raised:
        bodies.read(Stage.I2V, form)
    assert raised.value.body.code == code
    assert message in raised.value.body.message


def test_a_long_value_is_shortened_in_an_error_body():
    with pytest.raises(RequestError) as raised:
        bodies.read(Stage.T2I, body("application/json", json.dumps({"prompt": "p" * 3000}).encode()))
    assert len(raised.value.body.model_dump_json()) < 500


def test_an_error_body_is_plain_json_even_for_nan():
    with pytest.raises(RequestError) as raised:
        bodies.read(Stage.T2I, body("application/json", b'{"prompt":"a","guidance_scale":NaN}'))
    assert json.loads(raised.value.body.model_dump_json())["errors"][0]["input"] == "NaN"
