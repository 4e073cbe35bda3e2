"""What the schema says of each parameter, and the values that try it: only the schema states the limits.

A value is a JSON literal, since it may be one that no Python value gives.
"""

import json
import math
from base64 import b64encode
from dataclasses import dataclass
from functools import cache
from typing import Any

from cloudvid_schema.protocol import JSON, MULTIPART, ImageToVideoRequest, Stage, TextToImageRequest
from cloudvid_serving.bodies import Body
from support.picture_parts import encoded, noise

PICTURE = encoded(noise(64, 64), "PNG")
MODELS: dict[Stage, type[TextToImageRequest | ImageToVideoRequest]] = {
    Stage.T2I: TextToImageRequest,
    Stage.I2V: ImageToVideoRequest,
}
FORMS = [(Stage.T2I, JSON), (Stage.I2V, JSON), (Stage.I2V, MULTIPART)]

NUMBERS = [
    "0",
    "-0",
    "-0.0",
    "-1",
    "-0.5",
    "8.0",
    "8.5",
    "1e1",
    "1e308",
    "-1e308",
    "5e-324",
    "1e999",
    "-1e999",
    str(2**31),
    str(2**63),
    str(2**64),
    str(-(2**63)),
    str(10**30),
    "1" + "0" * 400,
    "NaN",
    "Infinity",
    "-Infinity",
]
OTHER_TYPES = ['"8"', '""', '"high"', "true", "false", "null", "[]", "[8]", "{}", '{"value": 8}']
NOT_JSON = ["+1", "01", ".5", "1.", "0x40", "1_000", "８", "'8'", "True", "nan", "undefined", "8;", "9" * 5000]
TEXTS = [
    "\0",
    "a\0b",
    "\ufeff",
    "\u200b",
    "\u202e",
    "e\u0301",
    " \n\t\u3000",
    "\ud800",
    "\udfff",
    "\udc00\ud800",
    "a\ud83d",
]
WORK = ("width", "height", "num_frames", "num_inference_steps")
"""The parameters that a request's work grows with."""


def is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


@dataclass(frozen=True)
class Rule:
    """What the schema says of one parameter."""

    kind: str
    may_be_null: bool
    limits: dict[str, Any]

    def accepts(self, value: object) -> bool:
        if value is None:
            return self.may_be_null
        if self.kind in ("integer", "number"):
            step = self.limits.get("multipleOf", 1 if self.kind == "integer" else None)  # 8.0 is an integer
            inside = type(value) in (int, float) and self.limits["minimum"] <= value <= self.limits["maximum"]
            return inside and (step is None or value % step == 0)
        if self.kind == "boolean":
            return isinstance(value, bool)
        if not isinstance(value, str):
            return False
        if "enum" in self.limits:
            return value in self.limits["enum"]
        shortest = self.limits.get("minLength", 0)
        return (
            is_unicode(value)
            and len(value.strip() if shortest else value) >= shortest
            and len(value) <= self.limits["maxLength"]
        )

    def literals(self) -> list[str]:
        """JSON values at, around and far beyond the limits, right and wrong."""
        if self.kind in ("integer", "number"):
            low, high = self.limits["minimum"], self.limits["maximum"]
            step = self.limits.get("multipleOf", 1 if self.kind == "integer" else 0.25)
            near = [low - step, low, low + step, high - step, high, high + step, low - 1, low + 1, high - 1, high + 1]
            if self.kind == "number":
                near += [math.nextafter(low, -math.inf), math.nextafter(high, math.inf), int(low), int(high)]
            return [*dict.fromkeys([json.dumps(value) for value in near] + NUMBERS + OTHER_TYPES)]
        if self.kind == "boolean":
            return ["0", "1", "1.0", '"true"', '"yes"', *OTHER_TYPES]
        if "enum" in self.limits:
            changes = (str, str.upper, str.title, "{} ".format, "{}\0".format)
            near = [change(word) for word in self.limits["enum"] for change in changes]
        else:
            most = self.limits["maxLength"]
            near = ["", "a", "a" * most, "a" * (most + 1), "😀" * most, "😀" * (most + 1), " " * most, "a" * 10**5]
        return [json.dumps(text) for text in near + TEXTS] + ["8", "0", "true", "null", "[]", '["a"]', "{}"]


@cache
def rules(stage: Stage) -> dict[str, Rule]:
    """The rule of each parameter but `metadata`, whose limits a JSON Schema cannot say."""
    found = {}
    for name, schema in MODELS[stage].model_json_schema()["properties"].items():
        plain, *others = schema.get("anyOf", [schema])
        found[name] = Rule(plain["type"], {"type": "null"} in others, plain)
    del found["metadata"]
    return found


def cheapest(stage: Stage) -> dict[str, str]:
    """The request that takes least work, as JSON values; any other guidance is allowed beside its own."""
    limits = {name: rule.limits for name, rule in rules(stage).items()}
    values = {name: limits[name]["minimum"] for name in WORK if name in limits}
    if stage is Stage.T2I:
        values["prompt"] = "a"
    else:
        values["min_guidance_scale"] = limits["min_guidance_scale"]["minimum"]
        values["max_guidance_scale"] = limits["max_guidance_scale"]["maximum"]
    return {name: json.dumps(value) for name, value in values.items()}


def is_cheap(stage: Stage, literals: dict[str, str]) -> bool:
    """Whether two cores carry this request out in a moment."""
    factors = [
        json.loads(literals[name]) / json.loads(least) for name, least in cheapest(stage).items() if name in WORK
    ]
    return math.prod(factors) <= 2


def json_body(stage: Stage, literals: dict[str, str]) -> bytes:
    """A JSON body of literals: it may hold what no Python value gives."""
    if stage is Stage.I2V:
        literals = {"image": json.dumps(b64encode(PICTURE).decode()), **literals}
    return ("{" + ", ".join(f"{json.dumps(name)}: {literal}" for name, literal in literals.items()) + "}").encode()


def as_field(rule: Rule | None, literal: str) -> str:
    """A form's field is JSON but for texts, which stand for themselves."""
    value = json.loads(literal) if rule and rule.kind == "string" else None
    return value if isinstance(value, str) else literal


def body_of(stage: Stage, form: str, parts: dict[str, Any], picture: bytes | None) -> Body:
    """A request's body in one of the forms in which it may come."""
    if form == JSON:
        image = {} if picture is None else {"image": b64encode(picture).decode()}
        return Body(JSON, {}, json.dumps(image | parts).encode())
    fields = {
        name: as_field(rules(stage).get(name), json.dumps(value)).encode(errors="surrogatepass")
        for name, value in parts.items()
    }
    if form == MULTIPART:
        return Body(MULTIPART, fields | ({} if picture is None else {"image": picture}))
    return Body(form, fields, picture or b"")


def values(stage: Stage, form: str) -> list[tuple[str, str, bool]]:
    """Parameter, JSON value, and whether it is one that the parameter takes."""
    found = []
    for name, rule in rules(stage).items():
        for literal in rule.literals():
            value = json.loads(literal)
            if form == MULTIPART and rule.kind == "string":
                value = as_field(rule, literal)
                if not is_unicode(value):
                    continue  # has no UTF-8 form to send
            found.append((name, literal, rule.accepts(value)))
    return found
