"""Z1: everything that reads what others wrote, by Hypothesis: it is read right, or refused with an error of our own.

Inputs are made nearly right (tests/support/inputs.py); each reader returns whether it took one, and an exception is a
finding. A seed repeats a round to the letter.
"""

import hashlib
import itertools
import json
import math
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace
from typing import Any

import jsonschema
import requests
from hypothesis import strategies as st
from pydantic import ValidationError

from cloudvid import CloudVidError, InvalidSceneFile, parse_scenes, read_scenes
from cloudvid.batch.manifest import MANIFEST, Record, read_records, request_digest
from cloudvid.batch.scenes import Scene, scene_schema
from cloudvid.endpoints import answers, errors
from cloudvid.endpoints.failures import Tries, tries_of
from cloudvid_schema import strict_json
from cloudvid_schema.faults import faults_of
from cloudvid_schema.protocol import Stage
from soak.examples import CORES, examine
from soak.rounds import Round, Rounds, case
from soak.targets import takes_body
from support import inputs
from support.parameter_limits import MODELS, is_unicode, rules
from support.processes import new_processes

_EXAMPLES = 500
"""Of one round."""
_SHORT_EXAMPLES = 100
_SCHEMA = jsonschema.Draft202012Validator(scene_schema())
_OUR_FILES = {"manifest.jsonl", "index.html"}


def _is_plain(text: str) -> bool:
    """Whether a terminal and a log take the text as it is."""
    return all(line.isprintable() for line in text.split("\n"))


def _check_names(scenes: list[Scene]) -> None:
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


def scene_files(folder: Path, text: bytes) -> bool:
    """Scenes that mean the same when they are written out, as the JSON Schema has them; or faults with their places."""
    path = folder / "scenes.json"
    path.write_bytes(text)
    try:
        scenes = read_scenes(path)
    except InvalidSceneFile as error:
        assert _is_plain(str(error)), str(error)
        _check_places(text, error)
        return False
    _check_names(scenes)
    assert parse_scenes([scene.model_dump(mode="json") for scene in scenes]) == scenes
    _SCHEMA.validate(strict_json.loads(text))
    for scene in scenes:
        assert scene.t2i_request().prompt == scene.scene_desc
        assert len(request_digest(scene.i2v_request())) == 64
    return True


def _check_places(text: bytes, error: InvalidSceneFile) -> None:
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
    """Together they are taken if and only if each of them is by itself, and no two differ only in case."""

    def parsed(*names: str) -> list[Scene] | None:
        try:
            return parse_scenes([{"id": name, "scene_desc": "a"} for name in names])
        except InvalidSceneFile as error:
            assert _is_plain(str(error)), str(error)
            assert all(re.fullmatch(r"scenes\[\d+\]\.id", fault.place) for fault in error.faults)
            return None

    each = [parsed(name) for name in candidates]
    together = parsed(*candidates)
    is_each_unique = len({name.casefold() for name in candidates}) == len(candidates)
    assert (together is not None) == (all(each) and is_each_unique)
    for scenes in [*each, together]:
        _check_names(scenes or [])
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
        shown = {name if name and name.isprintable() else strict_json.shorten(name) for name in wrong}
        assert {fault.place for fault in faults} == shown, (faults, wrong)
        assert all(_is_plain(str(fault)) for fault in faults)
        return False
    assert not wrong, wrong
    again = model.model_validate_json(request.model_dump_json())
    assert again == request
    assert request_digest(again) == request_digest(request)
    return True


def classified(drawn: tuple[int, bytes, dict[str, str]]) -> bool:
    """Whatever an answer holds, it is a file that matches its digest or an error of ours with a bound on its tries."""
    code, content, headers = drawn
    try:
        answers.whole(Stage.T2I, _response([content], headers))
        is_taken = True
    except errors.BrokenAnswer:
        is_taken = False
    error = answers.failure(Stage.T2I, answers.error_body(code, content))
    _check_error(error)
    tries, seconds = tries_of(error), itertools.count()
    decide = Tries(retries=4, patience=100.0, clock=lambda: float(next(seconds)))
    allowed = 0
    while allowed < 200 and decide.allow(error):
        decide.begin()
        allowed += 1
    assert allowed == min(tries, 4) if tries is not None else 4 < allowed <= 100
    return is_taken


def _check_error(error: Exception) -> None:
    """An error of the tree, in words that harm no terminal."""
    assert isinstance(error, CloudVidError)
    assert _is_plain(str(error)), str(error)


def _response(chunks: list[bytes], headers: dict[str, str]) -> Any:
    """An answer as requests hands it over, in the chunks in which it came."""
    response = requests.Response()
    response.status_code = 200
    response.headers.update(headers)
    response.raw = SimpleNamespace(stream=lambda *_, **__: iter(chunks))
    return response


def manifests(folder: Path, lines: list[bytes]) -> bool:
    """The last whole line of each scene counts, whatever stands between."""
    path, text = folder / MANIFEST, b"".join(lines)
    path.write_bytes(text)
    expected: dict[str, Record] = {}
    whole = 0
    for line in text.split(b"\n"):
        try:
            record = Record.model_validate_json(line)
        except ValidationError:
            continue
        whole += 1
        expected[record.id] = record
    records, is_tidy = read_records(folder)
    assert repr(records) == repr(expected)  # NaN is not equal to itself
    ends = not text or text.endswith(b"\n")
    assert is_tidy == (whole == len(expected) and text.count(b"\n") == whole and ends)
    path.write_text("".join(record.model_dump_json(exclude_none=True) + "\n" for record in records.values()))
    if not re.search(rb"NaN|Infinity", text):  # pydantic reads them, and writes null
        assert read_records(folder) == (records, True)
    return is_tidy


def streams(drawn: tuple[list[bytes], list[bytes]]) -> bool:
    """A file that is what its event says, after the events before it; the same in whatever chunks it comes."""
    outcomes = []
    for chunks in drawn:
        events: list[Any] = []
        made = None
        try:
            made = answers.streamed(Stage.T2I, _response(chunks, {}), events.append)
            result = next(line for line in b"".join(chunks).split(b"\n") if b'"result"' in line)
            assert json.loads(result)["sha256"] == made.sha256
            assert all(math.isfinite(each) for each in made.timings.values())
            outcome = hashlib.sha256(made.data).hexdigest()
        except CloudVidError as error:
            _check_error(error)
            outcome = str(error)
        outcomes.append((outcome, events, made is not None))
    assert outcomes[0] == outcomes[1]
    return outcomes[0][2]


def readers(folder: Path) -> list[tuple[str, "st.SearchStrategy[Any]", Callable[[Any], bool]]]:
    """All seven: name, inputs, and what takes one or not, with a folder for the files that are read."""
    documents = inputs.changed(inputs.scene_documents())
    scene_texts = documents.map(lambda document: json.dumps(document).encode()).flatmap(inputs.spoiled)
    sets = st.sampled_from(list(Stage)).flatmap(lambda stage: st.tuples(st.just(stage), inputs.parameters(stage)))
    return [
        ("scene files", scene_texts, lambda text: scene_files(folder, text)),
        ("scene ids", st.lists(inputs.ids(), min_size=1, max_size=4), scene_ids),
        ("parameters", sets, parameter_sets),
        ("answers", inputs.answers_with_headers(), classified),
        ("manifests", inputs.manifest_lines(), lambda lines: manifests(folder, lines)),
        ("request bodies", inputs.request_bodies(), lambda drawn: takes_body(*drawn)),
        ("event streams", inputs.event_streams(), streams),
    ]


@case("Z1", count=7 * 20_000 // _EXAMPLES, short=7, unit=f"rounds of {_EXAMPLES} examples")
def test_readers(rounds: Rounds) -> None:
    """Hypothesis on all that is read from others: scene files, ids, parameters, answers, manifests, bodies, events.

    Read right, or refused with an error of our own that names the place.
    """
    examples = _EXAMPLES if rounds.is_timed else _SHORT_EXAMPLES
    with new_processes(CORES) as pool:

        def work(each: Round) -> None:
            name, seen = pool.submit(_examined, each.number, examples, each.draw.randrange(2**32)).result()
            rounds.count("examples", seen.total())
            for outcome, count in sorted(seen.items()):
                rounds.count(f"{name} {outcome}", count)

        rounds.do(work, threads=CORES)


def _examined(number: int, examples: int, seed: int) -> tuple[str, Counter[str]]:
    """A reader, and how many inputs it took and refused."""
    seen: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        seven = readers(Path(folder))
        name, strategy, takes = seven[number % len(seven)]

        def check(value: Any) -> None:
            seen["taken" if takes(value) else "refused"] += 1

        try:
            examine(strategy, check, examples, seed)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None
    assert seen.total() >= examples, f"{name}: {seen.total()} inputs, not {examples}"
    return name, seen
