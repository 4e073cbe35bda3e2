"""Whatever reads what others wrote, and what must hold: taken as it was meant, or refused by an error of ours."""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import jsonschema
import requests
from hypothesis import strategies as st
from parameter_limits import MODELS, is_unicode, rules
from pydantic import ValidationError

from cloudvid import CloudVidError, InvalidSceneFile, answers, errors, parse_scenes, read_scenes
from cloudvid.failures import Tries, tries_of
from cloudvid.manifest import NAME, Record, read_records, request_digest
from cloudvid.scenes import Scene, scene_schema
from cloudvid_schema import bodies, strict_json
from cloudvid_schema.faults import faults_of
from cloudvid_schema.protocol import JSON, ErrorBody, RequestError, Stage
from soak import inputs

LONGEST_REFUSAL = 2**14
_SCHEMA = jsonschema.Draft202012Validator(scene_schema())
_OUR_FILES = {"manifest.jsonl", "index.html"}


@dataclass(frozen=True)
class Reader:
    """Something that reads what others wrote."""

    name: str
    inputs: st.SearchStrategy
    check: Callable[[Any], bool]
    """Whether the input was taken; an exception is a finding."""


def is_plain(text: str) -> bool:
    """Whether a terminal and a log take the text as it is."""
    return all(line.isprintable() for line in text.split("\n"))


def check_names(scenes: list[Scene]) -> None:
    """Each id names files that any system keeps apart from every other and from ours, in the folder itself."""
    names = [name for scene in scenes for name in (scene.picture_name, scene.video_name)]
    assert len({name.casefold() for name in names} | _OUR_FILES) == len(names) + len(_OUR_FILES)
    for name in names:
        assert name.isascii()
        assert name.isprintable()
        assert len(name) <= 255
        assert not set(name) & set('<>:"/\\|?*')
        assert name[0] not in ".- "
        assert Path("folder", name).parent == Path("folder")
        assert not PureWindowsPath(name).is_reserved()


def scene_files(folder: Path) -> Callable[[bytes], bool]:
    """Scenes that mean the same when they are written out, as the JSON Schema has them; or faults with their places."""
    path = folder / "scenes.json"

    def check(text: bytes) -> bool:
        path.write_bytes(text)
        try:
            scenes = read_scenes(path)
        except InvalidSceneFile as error:
            assert is_plain(str(error)), str(error)
            check_places(text, error)
            return False
        check_names(scenes)
        document = [scene.model_dump(mode="json") for scene in scenes]
        assert parse_scenes(document) == scenes
        _SCHEMA.validate(strict_json.loads(text))
        for scene in scenes:
            assert scene.t2i_request().prompt == scene.scene_desc
            assert len(request_digest(scene.i2v_request())) == 64
        return True

    return check


def check_places(text: bytes, error: InvalidSceneFile) -> None:
    """Each scene that is wrong by itself is named, and no fault is without its place."""
    try:
        document = strict_json.loads(text)
    except strict_json.JsonError:
        (fault,) = error.faults
        assert fault.place == ""
        return
    places = [fault.place for fault in error.faults]
    assert all(places)
    entries = document.get("scenes") if isinstance(document, dict) else document
    for index, entry in enumerate(entries if isinstance(entries, list) else ()):
        try:
            Scene.model_validate(entry)
        except ValidationError:
            assert any(re.match(rf"scenes\[{index}\](\.|$)", place) for place in places), places


def scene_ids(candidates: list[str]) -> bool:
    """Together they are taken if and only if each is alone and no two are one name where case is ignored."""

    def parsed(*names: str) -> list[Scene] | None:
        try:
            return parse_scenes([{"id": name, "scene_desc": "a"} for name in names])
        except InvalidSceneFile as error:
            assert is_plain(str(error)), str(error)
            assert all(re.fullmatch(r"scenes\[\d+\]\.id", fault.place) for fault in error.faults)
            return None

    alone = [parsed(name) for name in candidates]
    together = parsed(*candidates)
    is_each_its_own = len({name.casefold() for name in candidates}) == len(candidates)
    assert (together is not None) == (all(alone) and is_each_its_own)
    for scenes in [*alone, together]:
        check_names(scenes or [])
    return together is not None


def parameter_sets(drawn: tuple[Stage, dict[str, Any]]) -> bool:
    """Taken if and only if each parameter is within its own rule of the schema and the scales of guidance rise."""
    stage, values = drawn
    model, limits = MODELS[stage], rules(stage)
    wrong = {name for name, value in values.items() if name not in limits or not limits[name].accepts(value)}
    wrong |= {"prompt"} - values.keys() if stage is Stage.T2I else set()
    guidance = ("min_guidance_scale", "max_guidance_scale")
    if stage is Stage.I2V and not wrong.intersection(guidance):
        low, high = (values.get(name, model.model_fields[name].default) for name in guidance)
        wrong |= {"max_guidance_scale"} if high < low else set()
    try:
        request = model.model_validate(values)
    except ValidationError as error:
        faults = faults_of(error, model)
        # Beside a key that is no Unicode pydantic looks at nothing else.
        wrong = {name for name in wrong if not is_unicode(name)} or wrong
        assert {fault.place for fault in faults} == {repr_of(name) for name in wrong}, (faults, wrong)
        assert all(is_plain(str(fault)) for fault in faults)
        return False
    assert not wrong, wrong
    again = model.model_validate_json(request.model_dump_json())
    assert again == request
    assert request_digest(again) == request_digest(request)
    return True


def repr_of(name: str) -> str:
    """A name as a fault shows it."""
    return name if name and name.isprintable() else strict_json.shorten(name)


def classified(drawn: tuple[int, bytes, dict[str, str]]) -> bool:
    """Whatever an answer holds, it is a file that matches its digest or an error of ours with a bound on its tries."""
    code, content, headers = drawn
    try:
        answers.whole(Stage.T2I, _response([content], headers))
        taken = True
    except errors.BrokenAnswer:
        taken = False
    error = answers.failure(Stage.T2I, answers.error_body(code, content))
    check_error(error)
    tries, seconds = tries_of(error), itertools.count()
    decide = Tries(retries=4, patience=100.0, clock=lambda: float(next(seconds)))
    allowed = 0
    while allowed < 200 and decide.allow(error):
        decide.begin()
        allowed += 1
    assert allowed == min(tries, 4) if tries is not None else 4 < allowed <= 100
    return taken


def check_error(error: Exception) -> None:
    """An error of the tree, in words that harm no terminal."""
    assert isinstance(error, CloudVidError)
    assert is_plain(str(error)), str(error)


def _response(chunks: list[bytes], headers: dict[str, str]) -> Any:
    """An answer as requests hands it over, in the chunks in which it came."""
    response = requests.Response()
    response.status_code = 200
    response.headers.update(headers)
    response.raw = _Chunks(chunks)
    return response


class _Chunks:
    def __init__(self, chunks: list[bytes]) -> None:
        self._chunks = chunks

    def stream(self, *_: Any, **__: Any) -> Iterator[bytes]:
        yield from self._chunks


def manifests(folder: Path) -> Callable[[list[bytes]], bool]:
    """The last whole line of each scene counts, whatever stands between."""
    path = folder / NAME

    def check(lines: list[bytes]) -> bool:
        path.write_bytes(b"".join(lines))
        expected: dict[str, Record] = {}
        whole = 0
        for line in b"".join(lines).split(b"\n"):
            try:
                record = Record.model_validate_json(line)
            except ValidationError:
                continue
            whole += 1
            expected[record.id] = record
        records, is_tidy = read_records(folder)
        assert repr(records) == repr(expected)  # NaN is not equal to itself
        assert is_tidy == (whole == len(expected) and b"".join(lines).count(b"\n") == whole and _ends(lines))
        rewritten = b"".join(record.model_dump_json(exclude_none=True).encode() + b"\n" for record in records.values())
        path.write_bytes(rewritten)
        if not re.search(rb"NaN|Infinity", b"".join(lines)):  # pydantic reads them, and writes null
            assert read_records(folder) == (records, True)
        return is_tidy

    return check


def _ends(lines: list[bytes]) -> bool:
    text = b"".join(lines)
    return not text or text.endswith(b"\n")


def request_bodies(drawn: tuple[Stage, bodies.Body]) -> bool:
    """A request with its picture, the same again when its canonical form is read; or the answer that refuses it."""
    stage, body = drawn
    try:
        request, picture = bodies.read(stage, body)
    except RequestError as error:
        said = error.body.model_dump_json()
        assert ErrorBody.model_validate_json(said).code in (400, 413, 415, 422)
        assert len(said) <= LONGEST_REFUSAL, len(said)
        assert is_plain(error.body.message), error.body.message
        assert all(fault.parameter and fault.parameter in error.body.message for fault in error.body.errors)
        return False
    again = inputs.body_of(stage, JSON, json.loads(request.model_dump_json(exclude_none=True)), picture)
    assert bodies.read(stage, again) == (request, picture)
    return True


def streams(drawn: tuple[list[bytes], list[bytes]]) -> bool:
    """A file that is what its event says, after the events before it; the same in whatever chunks it comes."""
    outcomes = []
    for chunks in drawn:
        events: list[Any] = []
        try:
            made = answers.streamed(Stage.T2I, _response(chunks, {}), events.append)
            result = next(line for line in b"".join(chunks).split(b"\n") if b'"result"' in line)
            assert json.loads(result)["sha256"] == made.sha256
            assert all(math.isfinite(each) for each in made.timings.values())
            outcome = hashlib.sha256(made.data).hexdigest()
        except CloudVidError as error:
            check_error(error)
            outcome = str(error)
            made = None
        outcomes.append((outcome, events, made is not None))
    assert outcomes[0] == outcomes[1]
    return bool(outcomes[0][2])


def readers(folder: Path) -> tuple[Reader, ...]:
    """All seven, with a folder for the files that are read."""
    documents = inputs.changed(inputs.scene_documents())
    scene_texts = documents.map(lambda document: json.dumps(document).encode()).flatmap(inputs.spoiled)
    sets = st.sampled_from(list(Stage)).flatmap(lambda stage: st.tuples(st.just(stage), inputs.parameters(stage)))
    return (
        Reader("scene files", scene_texts, scene_files(folder)),
        Reader("scene ids", st.lists(inputs.ids(), min_size=1, max_size=4), scene_ids),
        Reader("parameters", sets, parameter_sets),
        Reader("answers", inputs.answers_with_headers(), classified),
        Reader("manifests", inputs.manifest_lines(), manifests(folder)),
        Reader("request bodies", inputs.request_bodies(), request_bodies),
        Reader("event streams", inputs.event_streams(), streams),
    )
