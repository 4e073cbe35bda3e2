"""Every parameter at and beyond its limits, and hostile pictures: each gets its answer, and the workers live on.

What is tried is in `support/parameter_limits.py` and `support/hostile_pictures.py`.
"""

import json
import os
import re
import subprocess
import sys

import pytest
import requests

from cloudvid_schema.faults import place_of
from cloudvid_schema.protocol import (
    JSON,
    MAX_DEPTH,
    MAX_METADATA_BYTES,
    MEDIA_TYPE,
    MULTIPART,
    ErrorBody,
    RequestError,
    Stage,
)
from cloudvid_serving import bodies
from support import ROOT, hostile_pictures
from support.parameter_limits import (
    FORMS,
    MODELS,
    NOT_JSON,
    PICTURE,
    WORK,
    as_field,
    cheapest,
    is_cheap,
    json_body,
    rules,
    values,
)

MOST_MIB = 100
LONGEST_ERROR = 4096


class Endpoints:
    """The running server, and the workers that it began with."""

    def __init__(self, server):
        self.server = server
        self.pids = self.pids_now()
        key = json.loads(server.key_file.read_text())["inference"]["key"]
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.headers["Authorization"] = f"Bearer {key}"

    def pids_now(self):
        return {stage: self.server.pids(stage) for stage in Stage}

    def post(self, stage, form, literals, picture=PICTURE):
        url = f"{self.server.url}/predictions/{stage}"
        if form == JSON:
            return self._session.post(url, json_body(stage, literals), headers={"Content-Type": JSON}, timeout=60)
        fields = {name: (None, as_field(rules(stage).get(name), literal)) for name, literal in literals.items()}
        return self._session.post(url, files={**fields, "image": ("picture.png", picture, "image/png")}, timeout=60)


@pytest.fixture(scope="module")
def endpoints(server):
    return Endpoints(server)


def complaint(answer: requests.Response, code: int, parameters: list[str]) -> str | None:
    """What is wrong with an answer that should be our error body and name these parameters."""
    if answer.status_code != code:
        return f"{answer.status_code}, not {code}: {answer.text[:300]}"
    body = ErrorBody.model_validate_json(answer.content)
    if body.code != code or body.type != {400: "UnreadableBody", 422: "InvalidParameters"}[code]:
        return f"code {body.code} of type {body.type}"
    if [error.parameter for error in body.errors] != parameters or not all(name in body.message for name in parameters):
        return f"{[error.parameter for error in body.errors]}, not {parameters}: {body.message}"
    if len(answer.content) > LONGEST_ERROR or "Traceback" in answer.text or "/site-packages/" in answer.text:
        return f"says too much: {answer.text[:300]}"
    return None


@pytest.mark.parametrize(("stage", "form"), FORMS)
def test_each_value_that_breaks_its_rule_is_named_422(endpoints, stage, form):
    tried = [(name, literal) for name, literal, valid in values(stage, form) if not valid]
    wrong = {
        (name, literal[:60]): problem
        for name, literal in tried
        if (problem := complaint(endpoints.post(stage, form, cheapest(stage) | {name: literal}), 422, [name]))
    }
    assert not wrong
    assert len(tried) > 150, "the schema's limits were not found"


@pytest.mark.parametrize(("stage", "form"), FORMS)
def test_broken_json_is_400_in_bodies_422_in_fields(endpoints, stage, form):
    wrong = {}
    for name, rule in rules(stage).items():
        for literal in NOT_JSON if rule.kind != "string" else []:
            answer = endpoints.post(stage, form, cheapest(stage) | {name: literal})
            expected = (400, []) if form == JSON else (422, [name])
            if problem := complaint(answer, *expected):
                wrong[name, literal[:60]] = problem
    assert not wrong


@pytest.mark.parametrize(("stage", "form"), FORMS)
def test_each_valid_value_is_read_as_it_was_sent(stage, form):
    """By the code that the handler calls, since the largest would keep two cores busy for hours."""

    def meant(name, literal):
        value = json.loads(literal)
        return MODELS[stage].model_fields[name].default if value is None else value

    wrong, tried = {}, 0
    for name, literal, valid in values(stage, form):
        literals = cheapest(stage) | {name: literal}
        if form == JSON:
            body = bodies.Body(JSON, {}, json_body(stage, literals))
        else:
            fields = {each: as_field(rules(stage).get(each), text).encode() for each, text in literals.items()}
            body = bodies.Body(MULTIPART, {**fields, "image": PICTURE})
        try:
            request, _ = bodies.read(stage, body)
        except RequestError as error:
            if valid:
                wrong[name, literal[:60]] = str(error)[:300]
            continue
        tried += 1
        if not valid or getattr(request, name) != meant(name, literal):
            wrong[name, literal[:60]] = f"read as {getattr(request, name)!r}"
    assert not wrong
    assert tried > 40, "the schema's limits were not found"


@pytest.mark.parametrize(("stage", "form"), [(Stage.T2I, JSON), (Stage.I2V, MULTIPART)])
def test_each_limit_that_is_cheap_is_carried_out(endpoints, stage, form):
    wrong, tried = {}, 0
    for name, literal, valid in values(stage, form):
        literals, limits = cheapest(stage) | {name: literal}, rules(stage)[name].limits
        is_limit = "minimum" not in limits or json.loads(literal) in (limits["minimum"], limits["maximum"], None)
        if not valid or not is_limit or (name in WORK and literal == "null") or not is_cheap(stage, literals):
            continue
        tried += 1
        answer = endpoints.post(stage, form, literals)
        if answer.status_code != 200 or answer.headers["Content-Type"] != MEDIA_TYPE[stage]:
            wrong[name, literal[:60]] = f"{answer.status_code}: {answer.text[:300]}"
    assert not wrong
    assert tried > 30, "the schema's limits were not found"


@pytest.mark.parametrize(("stage", "form"), FORMS)
def test_every_parameter_that_is_at_fault_is_named_at_once(endpoints, stage, form):
    literals = {name: literal for name, literal, valid in reversed(values(stage, form)) if not valid}
    answer = endpoints.post(stage, form, {name: literals[name] for name in rules(stage)})
    assert complaint(answer, 422, list(rules(stage))) is None


@pytest.mark.parametrize(("stage", "form"), FORMS)
def test_a_misspelt_parameter_is_refused_with_a_suggestion(endpoints, stage, form):
    wrong = {}
    for name in rules(stage):
        nearly = [name[:-1], name + "s", name.upper(), name.replace("_", "-") + "-", f"{name}[0]"]
        nearly += [f" {name}", f"{name} "] if form == JSON else []  # TorchServe trims the names of a form's fields
        for near in nearly:
            answer = endpoints.post(stage, form, cheapest(stage) | {near: "1"})
            problem = complaint(answer, 422, [near])
            if problem or ("did you mean" not in answer.text and near != near.upper()):
                wrong[near] = problem or answer.text[:300]
    assert not wrong


@pytest.mark.parametrize("stage", Stage)
def test_a_key_that_is_no_parameter_is_refused_and_named(endpoints, stage):
    other = Stage.I2V if stage is Stage.T2I else Stage.T2I
    keys = [
        *(rules(other).keys() - rules(stage).keys()),
        "",
        "\0",
        "a\nb",
        "\u202e",
        "😀",
        "k" * 100_000,
        '"',
        "\\",
        "\ud800",
    ]
    keys += [
        "__proto__",
        "__class__",
        "self",
        "model_config",
        "model_fields",
        "body",
        "data",
        "parameters",
        "width.height",
        "$ref",
    ]
    wrong = {
        key[:60]: problem
        for key in keys
        if (problem := complaint(endpoints.post(stage, JSON, cheapest(stage) | {key: "1"}), 422, [place_of([key])]))
    }
    assert not wrong


@pytest.mark.parametrize(("stage", "form"), FORMS)
def test_metadata_is_taken_up_to_its_limits_and_refused_beyond(endpoints, stage, form):
    room = MAX_METADATA_BYTES - len('{"a":""}')

    def text(letters):
        return json.dumps({"a": letters}, ensure_ascii=False)

    def nested(depth):
        return '{"a": ' + "[" * (depth - 1) + "8" + "]" * (depth - 1) + "}"

    taken = ["null", "{}", '{"": null}', text("x" * room), text("é" * (room // 2)), nested(MAX_DEPTH)]
    taken += ['{"a": 1e308, "b": -0.0, "c": 9007199254740993}', '{"a": "\\u0000"}', '{"__proto__": {"width": 1}}']
    refused = [text("x" * (room + 1)), text("é" * (room // 2 + 1)), nested(MAX_DEPTH + 1), nested(900)]
    refused += ["[]", "[{}]", '"{}"', "8", "true", '{"a": NaN}', '{"a": [1e999]}', '{"a": "\\ud800"}', '{"\\udfff": 1}']
    wrong = {}
    for literal in taken:
        answer = endpoints.post(stage, form, cheapest(stage) | {"metadata": literal})
        if answer.status_code != 200:
            wrong[literal[:60]] = answer.text[:300]
    for literal in refused:
        answer = endpoints.post(stage, form, cheapest(stage) | {"metadata": literal})
        if problem := complaint(answer, 422, ["metadata"]):
            wrong[literal[:60]] = problem
    assert not wrong


def test_no_picture_file_costs_more_memory_than_a_picture_may():
    path = f"{ROOT / 'handlers'}:{ROOT / 'tests'}"
    environment = os.environ | {"PYTHONPATH": path, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-m", hostile_pictures.__name__],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    costs = [json.loads(line) for line in done.stdout.splitlines()]
    wrong = [
        cost
        for cost in costs
        if cost["mib"] > MOST_MIB
        or (re.fullmatch(r"\d+×\d+" if cost["expected"] == "taken" else "image: must .+", cost["answer"]) is None)
    ]
    assert not wrong
    assert len(costs) > 150
    assert not done.stderr, "what a picture makes a library say would stand in the worker's log"


def test_each_hostile_picture_is_refused_and_named(endpoints):
    wrong = {}
    for name, data in hostile_pictures.refused():
        answer = endpoints.post(Stage.I2V, MULTIPART, cheapest(Stage.I2V), data)
        if problem := complaint(answer, 422, ["image"]):
            wrong[name] = problem
    assert not wrong


def test_each_odd_picture_that_is_harmless_becomes_a_clip(endpoints):
    wrong = {}
    for name, data in hostile_pictures.taken():
        answer = endpoints.post(Stage.I2V, MULTIPART, cheapest(Stage.I2V), data)
        if answer.status_code != 200 or answer.headers["Content-Type"] != MEDIA_TYPE[Stage.I2V]:
            wrong[name] = f"{answer.status_code}: {answer.text[:300]}"
    assert not wrong


def test_afterwards_both_stages_serve_with_the_same_workers(endpoints):
    assert endpoints.pids_now() == endpoints.pids
    client = endpoints.server.client()
    picture = client.text_to_image("a lighthouse", width=64, height=64, num_inference_steps=1)
    assert client.image_to_video(picture.data, num_frames=2, num_inference_steps=1).data
