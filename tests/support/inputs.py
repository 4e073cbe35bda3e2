"""Hypothesis strategies of what a client and a stage read: most inputs are nearly right, some are anything at all."""

import base64
import copy
import hashlib
import json
from functools import cache
from typing import Any

from hypothesis import strategies as st

from cloudvid.batch.scenes import ID_PATTERN
from cloudvid_schema.protocol import IMAGE_TYPES, JSON, MULTIPART, Stage
from cloudvid_serving.bodies import ACCEPTED, Body
from support.fake_server import named_events
from support.parameter_limits import OTHER_TYPES, PICTURE, TEXTS, body_of, rules

Strategy = st.SearchStrategy[Any]
_TEXT = st.text(st.characters(exclude_categories=()), max_size=30) | st.sampled_from(TEXTS)
"""With lone surrogates and control characters, as JSON can spell them."""
_PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | _TEXT
ANY_JSON: Strategy = st.recursive(
    _PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4), max_leaves=8
)
_WRONG_IN_HEADERS = st.sampled_from(
    ("", "-1", "1.2.3", "decode;dur=1.2.3", "x;dur=.", "denoise;dur=1e9", "9" * 5000, "１２")
) | st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=20)
_HOSTILE_IN_IDS = "/\\:*?\"<>|. \t\n\0\x1b\x7fé\u212a\u202e\ufeff\ud800😀-_%~$&;'`"


@st.composite
def changed(draw: st.DrawFn, documents: Strategy, most: int = 2) -> Any:
    """JSON documents with a few places put, dropped or renamed."""
    document = copy.deepcopy(draw(documents))
    for _ in range(draw(st.integers(0, most))):
        places = list(_places(document))
        if not places:
            return draw(ANY_JSON)
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        change = draw(st.sampled_from(("put", "put", "drop", "rename", "twice")))
        if change == "drop":
            del holder[key]
        elif change == "put" or isinstance(holder, list):
            holder[key] = draw(ANY_JSON | st.sampled_from(OTHER_TYPES).map(json.loads))
        elif change == "rename":
            holder[draw(_TEXT)] = holder.pop(key)
        else:
            holder[draw(_TEXT | st.just(f"{key}s"))] = copy.deepcopy(holder[key])
    return document


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


@st.composite
def spoiled(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes with a short piece replaced, mostly none."""
    if draw(st.sampled_from((False, False, True))):
        begin = draw(st.integers(0, len(data)))
        data = data[:begin] + draw(st.binary(max_size=4)) + data[begin + draw(st.integers(0, 8)) :]
    return data


@st.composite
def _chunked(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """Bytes in pieces."""
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=6)))
    return [data[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@cache
def _values(stage: Stage, name: str) -> Strategy:
    """JSON values of a parameter: at its limits, within them, and others."""
    rule = rules(stage)[name]
    tried = [json.loads(literal) for literal in rule.literals() if len(literal) < 5000]
    limits = rule.limits
    inside: Strategy = st.sampled_from([value for value in tried if rule.accepts(value)])
    if rule.kind == "integer":
        step = limits.get("multipleOf", 1)
        inside |= st.integers(limits["minimum"] // step, limits["maximum"] // step).map(lambda count: count * step)
    elif rule.kind == "number":
        inside |= st.floats(limits["minimum"], limits["maximum"])
    return st.integers(0, 29).flatmap(lambda number: inside if number else st.sampled_from(tried) | ANY_JSON)


@st.composite
def parameters(draw: st.DrawFn, stage: Stage, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """A few parameters of a stage."""
    names = [name for name in rules(stage) if name not in without]
    given = draw(st.lists(st.sampled_from(names), max_size=5, unique=True))
    found = {name: draw(_values(stage, name)) for name in given}
    if stage is Stage.T2I and "prompt" not in without and draw(st.integers(0, 19)):
        found.setdefault("prompt", draw(st.text(min_size=1, max_size=30)))
    if not draw(st.integers(0, 19)):
        found[draw(_TEXT)] = draw(ANY_JSON)
    return found


def ids() -> Strategy:
    """Scene ids: right, of one letter's case from another, nearly right, and hostile."""
    right = st.from_regex(ID_PATTERN[1:-1], fullmatch=True)
    devices = st.sampled_from(("CON", "nul", "Com1", "lpt9", "aux", "PRN", "COM0", "conin$")).flatmap(
        lambda name: st.sampled_from((name, f"{name}.png", f"{name}x", f"{name}."))
    )
    pieces = st.text(st.sampled_from(f"abAB09{_HOSTILE_IN_IDS}"), max_size=8)
    return st.one_of(right, right, st.sampled_from(("a", "A", "aB", "Ab", "a.", "a-")), devices, pieces, _TEXT)


def scene_documents() -> Strategy:
    """Scene files that are right but for a parameter here and there."""
    text = st.text(min_size=1, max_size=20)
    names = st.sampled_from(("a", "b", "scene_1", "x" * 100)) | ids()
    parts = {
        "motion_desc": text,
        "t2i_params": parameters(Stage.T2I, without=("prompt", "embed_recipe")),
        "i2v_params": parameters(Stage.I2V, without=("embed_recipe",)),
    }
    scene = st.fixed_dictionaries({"id": names, "scene_desc": text}, optional=parts)
    scenes = st.lists(scene, min_size=1, max_size=2)
    return scenes | st.fixed_dictionaries({"scenes": scenes}, optional={"$schema": text})


def _error_bodies() -> Strategy:
    """Bodies of answers that are no file: TorchServe's, a stage's, a proxy's page, or anything."""
    kinds = ("InvalidKeyException", "ServiceUnavailableException", "InternalServerException", "InvalidParameters", "x")
    messages = st.sampled_from(("Worker died.", "Prediction failed", "a\nb\x1b[31m", "", "queue is full")) | _TEXT
    codes = st.sampled_from((400, 401, 404, 408, 413, 422, 429, 500, 502, 503, 504, 507)) | st.integers()
    faults = st.lists(st.fixed_dictionaries({"parameter": _TEXT, "message": _TEXT, "input": ANY_JSON}))
    required = {"code": codes, "type": st.sampled_from(kinds) | _TEXT, "message": messages}
    body = st.fixed_dictionaries(required, optional={"errors": faults})
    page = st.just(b"<html><h1>502 Bad Gateway</h1></html>")
    return changed(body, 1).map(lambda value: json.dumps(value).encode()).flatmap(spoiled) | page | st.binary()


@st.composite
def answers_with_headers(draw: st.DrawFn) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers of an answer; the headers are mostly those of a file with this body."""
    body = draw(_error_bodies())
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    right = {
        "Content-Digest": f"sha-256=:{digest}:",
        "CloudVid-Seed": str(draw(st.integers(0, 2**32 - 1))),
        "CloudVid-Model": "m@1",
        "Server-Timing": "denoise;dur=12.5, decode;dur=3",
    }
    if draw(st.booleans()):
        right[draw(st.sampled_from(tuple(right)))] = draw(_WRONG_IN_HEADERS)
    return draw(st.integers(100, 599)), body, right


def _records() -> Strategy:
    texts = dict.fromkeys(("file", "sha256", "model", "request_sha256"), st.text(max_size=8))
    request = st.dictionaries(st.text(max_size=8), _PLAIN, max_size=2)
    others = {"size": st.integers(), "seed": st.integers(0, 2**32 - 1), "request": request}
    entry = st.fixed_dictionaries(texts | others, optional={"picture_sha256": st.text(max_size=8)})
    return st.fixed_dictionaries({"id": st.sampled_from(("a", "b", "c"))}, optional={"t2i": entry, "i2v": entry})


_LINES = st.lists(changed(_records(), most=1), max_size=4)


@st.composite
def manifest_lines(draw: st.DrawFn) -> list[bytes]:
    """Lines of a manifest, of few scenes, some of them again, some of them spoiled; the last one may lack its end."""
    lines = [draw(spoiled(json.dumps(document).encode() + b"\n")) for document in draw(_LINES)]
    if lines and not draw(st.integers(0, 3)):
        lines[-1] = lines[-1][: draw(st.integers(0, len(lines[-1])))]
    return lines


@st.composite
def request_bodies(draw: st.DrawFn) -> tuple[Stage, Body]:
    """Bodies of every form and media type, right, nearly right, and anything."""
    stage = draw(st.sampled_from(list(Stage)))
    form = draw(st.sampled_from(ACCEPTED[stage]))
    picture = None
    if stage is Stage.I2V:
        picture = draw(st.sampled_from((PICTURE, PICTURE, None)) | st.binary(max_size=40))
    found = draw(parameters(stage))
    if draw(st.booleans()):
        found["metadata"] = draw(st.dictionaries(_TEXT, ANY_JSON, max_size=3) | ANY_JSON)
    body = body_of(stage, form, found, picture)
    fields = dict(body.fields)
    if not draw(st.integers(0, 9)):
        fields[draw(st.sampled_from(("parameters", "image", "fps", "metadata", "body")) | _TEXT)] = draw(st.binary())
    if not draw(st.integers(0, 9)):
        form = draw(st.sampled_from((JSON, MULTIPART, *IMAGE_TYPES, "")) | _TEXT)
    return stage, Body(form, fields, draw(spoiled(body.content)))


@st.composite
def event_streams(draw: st.DrawFn) -> tuple[list[bytes], list[bytes]]:
    """One stream of events, spoiled or not, in two cuts into chunks."""
    named = named_events(draw(st.binary(max_size=40)))
    result = named["result"] | {"timings": {"denoise": 1.5}}
    failed = {"event": "error", "code": 507, "type": "OutOfMemory", "message": "out of memory", "errors": []}
    last = draw(st.sampled_from((result, result, result, failed, {})))
    right = st.just([named["started"], named["progress"], named["progress"] | {"step": 2}, last])
    events = draw(changed(right) | right)
    lines = events if isinstance(events, list) else [events]
    end = draw(st.sampled_from((b"\n", b"\n", b"\r\n", b"\n\n", b"")))
    stream = draw(spoiled(b"".join(json.dumps(event).encode() + end for event in lines)))
    return draw(_chunked(stream)), draw(_chunked(stream))
