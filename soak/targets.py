"""What atheris tries (Z2), and the inputs that it begins with. These are made by code: no file of them is kept."""

import json
from collections.abc import Callable, Iterator

from cloudvid_schema.faults import MAX_FAULTS
from cloudvid_schema.protocol import JSON, MULTIPART, ErrorBody, RequestError, Stage
from cloudvid_serving.bodies import ACCEPTED, Body, read
from cloudvid_stages.pictures import open_picture
from support import hostile_pictures
from support.parameter_limits import FORMS, as_field, body_of, cheapest, json_body, rules, values
from support.picture_parts import PNG_MAGIC, chunk, encoded, noise

_MOST_PIXELS = 64 * 1024
_LONGEST_REFUSAL = 2**14
_FORMS = [(stage, form) for stage in Stage for form in (*ACCEPTED[stage], "text/plain")]


def takes_body(stage: Stage, body: Body) -> bool:
    """Whether a body is taken; if so, its canonical form is read as the same request, else an answer refuses it."""
    try:
        request, picture = read(stage, body)
    except RequestError as error:
        text = error.body.model_dump_json()
        assert ErrorBody.model_validate_json(text).code in (400, 413, 415, 422)
        assert len(text) <= _LONGEST_REFUSAL, len(text)
        assert error.body.message.isprintable(), error.body.message
        named = [fault.parameter for fault in error.body.errors[:MAX_FAULTS]]  # one more says how many more there are
        assert all(name and name in error.body.message for name in named), named
        return False
    assert (picture is None) == (stage is Stage.T2I)
    again = body_of(stage, JSON, json.loads(request.model_dump_json(exclude_none=True)), picture)
    assert read(stage, again) == (request, picture)
    return True


def body(data: bytes) -> None:
    """Read bytes as a request: the first byte says the stage and form, a zero parts one field from the next."""
    stage, form = _FORMS[data[0] % len(_FORMS)] if data else _FORMS[0]
    content, *parts = data[1:].split(b"\0")
    fields = {name.decode(errors="replace"): value for name, _, value in (part.partition(b"=") for part in parts)}
    takes_body(stage, Body(form, fields, content))


def seeds_of_bodies() -> Iterator[bytes]:
    """Each parameter at its limits, in each form."""
    for stage, form in FORMS:
        first = bytes([_FORMS.index((stage, form))])
        for name, literal, _ in values(stage, form):
            literals = cheapest(stage) | {name: literal}
            if form == JSON:
                yield first + json_body(stage, literals)
            else:
                fields = {each: as_field(rules(stage).get(each), text) for each, text in literals.items()}
                parts = "".join(f"\0{each}={value}" for each, value in fields.items())
                yield first + parts.encode(errors="replace") + b"\0image=x"
    first = bytes([_FORMS.index((Stage.I2V, MULTIPART))])
    yield first + b'\0image=x\0parameters={"fps": 6, "metadata": {"a": [1, {}]}}'


def picture(data: bytes) -> None:
    """Open bytes as a picture; after an odd first byte a PNG's checksums are made right, to get past them."""
    try:
        image = open_picture(_with_checksums(data[1:]) if data[:1] and data[0] % 2 else data[1:], _MOST_PIXELS)
    except RequestError as error:
        assert error.body.code == 422
        assert [fault.parameter for fault in error.body.errors] == ["image"]
        return
    assert image.mode == "RGB"
    assert image.width * image.height <= _MOST_PIXELS


def _with_checksums(png: bytes) -> bytes:
    parts, at = [png[: len(PNG_MAGIC)]], len(PNG_MAGIC)
    while len(head := png[at : at + 8]) == 8:
        length = int.from_bytes(head[:4], "big")
        whole = chunk(head[4:], png[at + 8 : at + 8 + length])
        parts.append(head[:4] + whole[4:])  # the length as it was, which may be wrong
        at += 12 + length
    return b"".join([*parts, png[at:]])


def seeds_of_pictures() -> Iterator[bytes]:
    """Small pictures of every kind, and all hostile ones that are short."""
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        yield b"\1" + encoded(noise(8, 8, "RGB").convert(mode), "PNG")
    for kind in ("JPEG", "WEBP"):
        yield b"\0" + encoded(noise(8, 8), kind)
    yield b"\0" + encoded(noise(16, 16), "JPEG", progressive=True)
    yield b"\0" + encoded(noise(8, 8), "WEBP", lossless=True)
    for _, data in (*hostile_pictures.taken(), *hostile_pictures.refused()):
        yield b"\1" + data


TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], Iterator[bytes]], int]] = {
    "bodies": (body, seeds_of_bodies, 2048),
    "pictures": (picture, seeds_of_pictures, 4096),
}
"""What is called, its seeds, and bytes of the longest input: enough for each kind of part, and quick."""
