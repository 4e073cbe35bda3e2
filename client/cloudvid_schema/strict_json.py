"""JSON as both sides read it: UTF-8, no key twice, bounded nesting, and an error that says where."""

import json
import re
from typing import Any

_TRAILING_COMMA = re.compile(r",\s*[\]}]")
_TOKEN = re.compile(r'("[^"\\]*(?:\\.[^"\\]*)*")(\s*:)?|[\[\]{}]', re.DOTALL)
"""A string, whether it is a key, or a bracket."""


class JsonError(ValueError):
    """The text is not the JSON that was asked for; the message says why, with line and column where known."""


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise _KeyTwice(key)
        result[key] = value
    return result


class _KeyTwice(Exception):
    """Of an object; its text is not at hand where it is found."""


def _place(text: str, at: int) -> str:
    return f"at line {text.count(chr(10), 0, at) + 1}, column {at - text.rfind(chr(10), 0, at)}"


def _second_key(text: str) -> JsonError:
    """The error of a text in which some object has a key twice."""
    objects: list[set[str]] = []
    for token in _TOKEN.finditer(text):
        if token[0] in "[{":
            objects.append(set())
        elif token[0] in "]}":
            objects.pop()
        elif token[2]:
            key = json.loads(token[1])
            if key in objects[-1]:
                return JsonError(f"key {shorten(key)} stands twice in one object, {_place(text, token.start())}")
            objects[-1].add(key)
    raise AssertionError("no key stands twice")


def _reason(error: json.JSONDecodeError) -> str:
    """What is wrong, named as the mistake that it usually is, and where."""
    text, at = error.doc, error.pos
    before, rest = text[:at].rstrip(), text[at:].lstrip()
    reason = error.msg.removesuffix(" at")
    if not text.strip():
        return "it is empty"
    if reason == "Invalid control character":
        reason = f"a string holds a control character (in JSON {json.dumps(text[at])[1:-1]})"
    elif (comma := _TRAILING_COMMA.search(text, max(0, len(before) - 1))) and comma.start() <= at:
        reason, at = "a comma stands before the end of an array or object", comma.start()
    elif rest.startswith(("//", "/*", "#")):
        reason = "comments are not JSON"
    elif rest.startswith("```"):
        reason = "a fence of Markdown is not JSON"
    elif rest.startswith("'"):
        reason = "strings have double quotes"
    elif reason == "Extra data" and rest.startswith(("{", "[")):
        reason = "a second value begins (JSON Lines? put [ ] around all lines, and commas between them)"
    elif not before and not rest.startswith(("[", "{")):
        reason = f"JSON begins with [ or {{, this with {shorten(rest[:20])}"
    return f"{reason} {_place(text, at)}"


def loads(text: bytes | str) -> Any:
    """Parse one JSON document.

    NaN and Infinity pass here as Python floats, so that the field's own check can name the field.

    Raises:
        JsonError: not UTF-8, not JSON, a key twice in one object, or nested too deeply.
    """
    try:
        encoding = "utf-8" if isinstance(text, str) else json.detect_encoding(bytes(text))
        if not encoding.startswith("utf-8"):
            raise JsonError(f"not UTF-8: this is {encoding[:6].upper()}; save it as UTF-8")
        document = text if isinstance(text, str) else bytes(text).decode("utf-8-sig")
        return json.loads(document, object_pairs_hook=_no_key_twice)
    except JsonError:
        raise
    except _KeyTwice:
        raise _second_key(document) from None
    except json.JSONDecodeError as error:
        raise JsonError(f"not JSON: {_reason(error)}") from None
    except UnicodeDecodeError as error:
        before = error.object[: error.start].decode()
        raise JsonError(f"not UTF-8: byte 0x{error.object[error.start]:02x} {_place(before, len(before))}") from None
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
