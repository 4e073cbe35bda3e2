"""JSON as both sides read it: UTF-8, no key twice, bounded nesting, and an error that says where."""

import json
from typing import Any


class JsonError(ValueError):
    """The text is not the JSON that was asked for; the message says why, with line and column where known."""


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise JsonError(f"key {shorten(key)} stands twice in one object")
        result[key] = value
    return result


def loads(text: bytes | str) -> Any:
    """Parse one JSON document.

    NaN and Infinity pass here as Python floats, so that the field's own check can name the field.

    Raises:
        JsonError: not UTF-8, not JSON, a key twice in one object, or nested too deeply.
    """
    try:
        if isinstance(text, bytes | bytearray):
            text = bytes(text).decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=_no_key_twice)
    except JsonError:
        raise
    except json.JSONDecodeError as error:
        raise JsonError(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except UnicodeDecodeError as error:
        raise JsonError(f"not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}") from None
    except RecursionError:
        raise JsonError("nested too deeply") from None
    except ValueError as error:  # an integer of more digits than Python converts
        raise JsonError(f"not JSON: {error}") from None


SHORT = 80
"""Characters of a value that a message shows."""


def shorten(value: object, limit: int = SHORT) -> str:
    """A value as JSON on one line of at most about `limit` characters, for a message."""
    try:
        text = json.dumps(value, ensure_ascii=True)
    except (TypeError, ValueError, RecursionError):
        text = ascii(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}… ({len(text)} characters)"
