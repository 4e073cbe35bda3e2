"""What is wrong with an input: the place, the rule and the value, in one wording for client and server."""

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from cloudvid_schema.strict_json import SHORT, shorten

MAX_FAULTS = 20
"""Most faults of one model that are spelled out."""
_MOST_FAULTS = 1000
"""Most faults that are looked at: pydantic spells out all of them or none, and a large input can have millions."""

# pydantic's error type -> the rule, with pydantic's own context filled in.
_RULES = {
    "missing": "is required",
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "string_type": "must be a string",
    "string_unicode": "must be valid Unicode",
    "bool_type": "must be true or false",
    "dict_type": "must be a JSON object",
    "list_type": "must be a JSON array",
    "model_type": "must be a JSON object",
    "model_attributes_type": "must be a JSON object",
    "finite_number": "must be finite",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "string_too_short": "must have at least {min_length} character(s)",
    "string_too_long": "must have at most {max_length} characters",
    "literal_error": "must be {expected}",
}


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with an input."""

    place: str
    """Where: `width`, or `scenes[3].i2v_params.fps`. Empty for the input as a whole."""
    rule: str
    """What must hold there."""
    value: object = None
    """What stood there."""
    has_value: bool = True
    of: str = ""
    """What else names the thing at fault: a scene's id."""

    @property
    def message(self) -> str:
        """The rule and the value, without the place."""
        return f"{self.rule}, got {shorten(self.value)}" if self.has_value else self.rule

    @property
    def input(self) -> object:
        """The value as an error body shows it: itself where it is a short plain value, else the start of its JSON."""
        plain = self.value is None or type(self.value) in (bool, int, float)
        plain = plain or (isinstance(self.value, str) and self.value.isprintable())  # not a lone surrogate, say
        finite = not isinstance(self.value, float) or math.isfinite(self.value)
        return self.value if plain and finite and len(str(self.value)) <= SHORT else shorten(self.value)

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" if self.place else self.message


def place_of(location: Iterable[int | str], prefix: str = "") -> str:
    """A pydantic location as a path: `("scenes", 3, "i2v_params", "fps")` -> `scenes[3].i2v_params.fps`."""
    place = prefix
    for step in location:
        if isinstance(step, int):
            place += f"[{step}]"
        else:
            name = step if 0 < len(step) <= SHORT and step.isprintable() else shorten(step)
            place += f".{name}" if place else name
    return place


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> Mapping[str, Any] | None:
    """The fields of the (nested) model at a location; None where there is a plain value."""
    for step in location:
        field = model.model_fields.get(step) if isinstance(step, str) else None
        nested = field.annotation if field else None
        if not (isinstance(nested, type) and issubclass(nested, BaseModel)):
            return None
        model = nested
    return model.model_fields


_SYNONYMS = {
    "id": ("scene_id", "scene_number", "scene_no", "shot_id", "number", "name"),
    "scene_desc": ("prompt", "visual_prompt", "image_prompt", "description", "visual_description", "text"),
    "motion_desc": ("motion", "motion_prompt", "video_prompt"),
    "negative_prompt": ("negative",),
    "num_inference_steps": ("steps", "num_steps", "inference_steps"),
    "guidance_scale": ("cfg", "cfg_scale", "guidance"),
    "num_frames": ("frames", "frame_count"),
    "fps": ("frame_rate", "framerate"),
}
"""What others call our keys."""
_MEANT = {synonym: name for name, synonyms in _SYNONYMS.items() for synonym in synonyms}


def unknown_key(key: str, known: Iterable[str], elsewhere: Mapping[str, str] | None = None) -> str:
    """The rule for a key that is not known, naming the one that is probably meant.

    Args:
        elsewhere: keys that are known in another place, by name, with their place.
    """
    places = dict(elsewhere or {}) | {name: name for name in known}
    plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[- ]", "_", key[:SHORT]).lower()  # `sceneId`, `scene-id`
    near = [name for name in (plain, _MEANT.get(plain)) if name in places]
    known = sorted(known)
    near += difflib.get_close_matches(key[:SHORT], known, n=1, cutoff=0.6)
    return f"is not known; did you mean {places[near[0]]}?" if near else f"is not known; known are {', '.join(known)}"


def _elsewhere(model: type[BaseModel], location: tuple[int | str, ...]) -> dict[str, str]:
    """The fields of the models within the one at a location, with their places; of some of one name the first."""
    found: dict[str, str] = {}
    for outer in _fields_at(model, location) or ():
        for name in _fields_at(model, (*location, outer)) or ():
            found.setdefault(name, f"{outer}.{name}")
    return found


def lines(faults: Iterable[Fault]) -> Iterator[str]:
    """The faults as text; one that many entries of a list share is one line that counts them."""
    alike: dict[tuple[str, str], list[Fault]] = {}
    for fault in faults:
        alike.setdefault((re.sub(r"\[\d+\]", "[]", fault.place), fault.message), []).append(fault)
    for first, *others in alike.values():
        more = [f"and {len(others)} more {first.place.partition('[')[0]}"] if others else []
        notes = " ".join([first.of] * bool(first.of) + more)
        yield f"{first} ({notes})" if notes else str(first)


def faults_of(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[Fault]:
    """Every fault that pydantic found in a model, in the order of its fields; `prefix` says where the model stands in a
    larger input, e.g. `scenes[3]`. Where there are more than a thousand, only their number.
    """
    if (count := error.error_count()) > _MOST_FAULTS:
        return [Fault(prefix, f"has {count} faults", has_value=False)]
    found = []
    details = error.errors(include_url=False)
    for detail in details[:MAX_FAULTS]:
        location, kind = detail["loc"], detail["type"]
        if kind == "string_unicode" and _fields_at(model, location) is not None:
            location, kind = (*location, detail["input"]), "extra_forbidden"  # a key: pydantic gives its model's place
        place = place_of(location, prefix)
        if kind == "extra_forbidden":
            known = _fields_at(model, location[:-1]) or ()
            rule = unknown_key(str(location[-1]), known, _elsewhere(model, location[:-1]))
            found.append(Fault(place, rule, has_value=False))
        elif kind == "value_error" and not location:  # a model's own rule about several of its fields
            found.append(Fault(place, str(detail["ctx"]["error"]), has_value=False))
        else:
            rule = _RULES.get(kind, detail["msg"]).format(**detail.get("ctx", {}))
            found.append(Fault(place, rule, detail["input"], has_value=kind != "missing"))
    if count > MAX_FAULTS:
        found.append(Fault(prefix, f"{count - MAX_FAULTS} more faults", has_value=False))
    return found
