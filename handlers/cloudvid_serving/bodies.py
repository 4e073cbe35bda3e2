"""Reads the forms of an endpoint's body (docs/openapi.json) into a validated request.

A server passes what it has parsed: the fields of the query or form as text, and the body. All forms are equivalent:
parameters as text fields, parameters as one JSON object, and for `i2v` a picture as bytes or base64.
"""

import base64
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from cloudvid_schema import protocol, strict_json
from cloudvid_schema.faults import Fault, faults_of, place_of
from cloudvid_schema.protocol import (
    MAX_FIELDS,
    MAX_IMAGE_BYTES,
    MAX_PARAMETERS_BYTES,
    MAX_PARAMETERS_VALUES,
    REQUESTS,
    Request,
    RequestError,
    Stage,
)

ACCEPTED = {Stage.T2I: (protocol.JSON,), Stage.I2V: (protocol.MULTIPART, *protocol.IMAGE_TYPES, protocol.JSON)}
"""Media types that each endpoint reads."""


@dataclass(frozen=True)
class Body:
    """An HTTP request, as far as a stage cares for it."""

    content_type: str
    """Media type without its parameters, lower case; empty where none was sent."""
    fields: Mapping[str, bytes]
    """Query parameters and the parts of a form, by name."""
    content: bytes = b""
    """The body, unless it was a form."""


def read(stage: Stage, body: Body) -> tuple[Request, bytes | None]:
    """The request that a body means, and its picture.

    Returns:
        The validated request; for `i2v` the bytes of the picture file (not yet looked at), for `t2i` None.

    Raises:
        RequestError: 400, 413, 415 or 422, with every fault that was found.
    """
    if body.content_type not in ACCEPTED[stage]:
        got = body.content_type if body.content_type.isprintable() else strict_json.shorten(body.content_type)
        message = f"Content-Type must be one of {', '.join(ACCEPTED[stage])}; got {got[:80] or 'none'}"
        raise RequestError(415, "UnsupportedMediaType", message)
    _check_size(stage, body)
    fields = dict(body.fields)
    values: dict[str, Any] = {}
    picture: bytes | None = None
    if body.content_type == protocol.MULTIPART:
        picture = fields.pop("image", None)
        if "parameters" in fields:
            values = _json_object(fields.pop("parameters"), "parameters")
    elif body.content_type == protocol.JSON:
        values = _json_object(body.content, "body")
    else:
        picture = body.content
        if not picture:
            raise RequestError.unreadable("the body is empty; it must be the picture's bytes")
    if stage is Stage.I2V and body.content_type == protocol.JSON:
        image = values.pop("image", None)
        if (size := len(body.content) - (len(image) if isinstance(image, str) else 0)) > MAX_PARAMETERS_BYTES:
            rule = f"the parameters must have at most {MAX_PARAMETERS_BYTES} bytes"
            raise RequestError(413, "TooLarge", f"{rule}, got {size}")
        picture = None if image is None else _base64(image)
    _add_fields(values, fields, stage)
    faults: list[Fault] = []
    try:
        request = REQUESTS[stage].model_validate(values)
    except ValidationError as error:
        faults = faults_of(error, REQUESTS[stage])
    if stage is Stage.I2V and not picture:
        faults.insert(0, Fault("image", "is required", has_value=False))
    if faults:
        raise RequestError.invalid(faults)
    if picture is not None and len(picture) > MAX_IMAGE_BYTES:
        raise too_large(len(picture))
    return request, picture


def too_large(size: int, limit: int = MAX_IMAGE_BYTES) -> RequestError:
    """413: the picture file has more bytes than are taken."""
    message = f"image: must be at most {limit} bytes, got {size} bytes; send a smaller picture"
    return RequestError(413, "TooLarge", message)


def _check_size(stage: Stage, body: Body) -> None:
    """Refuse what no valid request needs, before any of it is parsed: an empty array takes Python a hundred bytes, and
    each unknown key is an error that pydantic describes.
    """
    size = sum(len(raw) for name, raw in body.fields.items() if name != "image")
    size += len(body.content) if stage is Stage.T2I else 0
    values = sum(map(body.content.count, (b",", b"[", b"{"))) if body.content_type == protocol.JSON else 0
    for rule, most, got in (
        (f"the parameters must have at most {MAX_PARAMETERS_BYTES} bytes", MAX_PARAMETERS_BYTES, size),
        (f"the body must have at most {MAX_PARAMETERS_VALUES} values", MAX_PARAMETERS_VALUES, values),
        (f"there must be at most {MAX_FIELDS} fields", MAX_FIELDS, len(body.fields)),
    ):
        if got > most:
            raise RequestError(413, "TooLarge", f"{rule}, got {got}")


def _json_object(text: bytes, what: str) -> dict[str, Any]:
    if not text.strip():
        raise RequestError.unreadable(f"the {what} is empty; it must be a JSON object")
    try:
        value = strict_json.loads(text)
    except strict_json.JsonError as error:
        raise RequestError.unreadable(f"{what}: {error}") from None
    if not isinstance(value, dict):
        raise RequestError.unreadable(f"the {what} must be a JSON object, got {strict_json.shorten(value)}")
    return value


def _base64(text: object) -> bytes:
    if not isinstance(text, str):
        raise RequestError.invalid([Fault("image", "must be a base64 string", text)])
    if len(text) > MAX_IMAGE_BYTES * 4 // 3 + 4:
        raise too_large(len(text) * 3 // 4)
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        rule = "must be base64 (RFC 4648, no line breaks, no data: prefix)"
        raise RequestError.invalid([Fault("image", rule, text[:40])]) from None


def _add_fields(values: dict[str, Any], fields: Mapping[str, bytes], stage: Stage) -> None:
    """Add text fields to the JSON values: `6` is a number where the parameter is one, as in JSON itself."""
    for name, raw in fields.items():
        place = place_of((name,))
        if name in values:
            raise RequestError.invalid([Fault(place, "is given twice, in JSON and as a field", has_value=False)])
        field = REQUESTS[stage].model_fields.get(name)
        if field is None:  # a picture by another name than `image`, say: what matters is the name
            values[name] = None
            continue
        try:
            values[name] = text = raw.decode()
        except UnicodeDecodeError:
            raise RequestError.invalid([Fault(place, "must be UTF-8", ascii(raw[:40]))]) from None
        if field.annotation is not str and name != "fit":
            with suppress(strict_json.JsonError):  # the parameter's own rule names what is no JSON
                values[name] = strict_json.loads(text)
