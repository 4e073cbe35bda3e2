"""Z3: schemathesis asks the running server what docs/openapi.json says that it takes, and what it does not.

The server takes only small requests, as an operator may set it, so that each case costs milliseconds: what is right
but large is refused with 422, which the description names.
"""

import base64
import copy
import json
import re
from collections import Counter
from functools import cache
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from cloudvid.endpoints.connection import plain_session
from cloudvid_schema.protocol import MULTIPART, Stage
from soak.examples import CORES, examine
from soak.rounds import Round, Rounds, case
from soak.servers import served
from support import ROOT
from support.parameter_limits import PICTURE
from support.processes import new_processes

_CASES = 100
"""Of one round."""
_SHORT_CASES = 5
_DESCRIPTION: dict[str, Any] = json.loads((ROOT / "docs/openapi.json").read_text())
_LIMITS = {
    "CLOUDVID_T2I_MAX_PIXELS": "4096",
    "CLOUDVID_T2I_MAX_STEPS": "2",
    "CLOUDVID_I2V_MAX_PIXELS": "4096",
    "CLOUDVID_I2V_MAX_STEPS": "2",
    "CLOUDVID_I2V_MAX_FRAMES": "2",
}
_SMALL = {"width": 64, "height": 64, "num_inference_steps": 1, "num_frames": 2}
_UNREAD = b"ErrorDataDecoderException"
"""The type of TorchServe's own answer to a form that it cannot read: the handler never sees it."""
_UNSAID = (
    r"not be blank|at least min_guidance_scale|an integer, got -?\d+\.0|given twice"
    r"|plain JSON|at most \d+ bytes|most 32 deep"
)
"""Rules that no schema can express; the description has them in words."""
_PATHS = [path for path, operations in _DESCRIPTION["paths"].items() if "post" in operations]
"""Those of the stages."""
_KINDS = [(path, kind) for kind in ("right", "small", "wrong") for path in _PATHS]


@case("Z3", count=len(_KINDS) * 7, short=len(_KINDS), unit=f"rounds of {_CASES} requests")
def test_contract(rounds: Rounds) -> None:
    """Schemathesis on docs/openapi.json against the running server: right, small and wrong requests of the stages'
    endpoints, in each form.

    No 5xx but TorchServe's own for a form that it cannot read; what is wrong is 4xx; each answer has a status, media
    type, headers and body that are described.
    """
    pytest.importorskip("schemathesis", reason="needs requirements/soak.txt")
    cases = _CASES if rounds.is_timed else _SHORT_CASES
    with served(rounds.folder / "server", _LIMITS) as running, new_processes(CORES) as pool:
        pids = {stage: running.pids(stage) for stage in Stage}
        server = running.url, running.key("inference")

        def work(each: Round) -> None:
            path, kind = _KINDS[each.number % len(_KINDS)]
            seen = pool.submit(_ask, server, path, kind, cases, each.draw.randrange(2**32)).result()
            rounds.count(f"{path} {kind}", seen.total())
            for status, count in sorted(seen.items()):
                rounds.count(status, count)

        rounds.do(work, threads=CORES)
        assert {stage: running.pids(stage) for stage in Stage} == pids, "a worker was replaced"
    assert rounds.counts["200"] or len(rounds.numbers) < len(_KINDS), "nothing was ever carried out"


def _small_description() -> dict[str, Any]:
    """The description of a server with these limits: whatever is right by it is carried out."""
    description = copy.deepcopy(_DESCRIPTION)

    def narrow(value: Any) -> None:
        if isinstance(value, dict):
            properties = value.get("properties", {})
            for name in _SMALL.keys() & properties.keys():
                properties[name] = {"const": _SMALL[name]}
            if "num_inference_steps" in properties:
                value["required"] = [*value.get("required", ()), *(_SMALL.keys() & properties.keys())]
            if value.get("in") == "query" and value["name"] in _SMALL:
                value |= {"required": True, "schema": {"const": _SMALL[value["name"]]}}
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            narrow(inner)

    narrow(description)
    return description


@cache
def _described() -> dict[str, Any]:
    """What schemathesis makes of the description for each kind of request: once for each process."""
    import schemathesis

    whole, small = (schemathesis.openapi.from_dict(each) for each in (_DESCRIPTION, _small_description()))
    return {"right": whole, "small": small, "wrong": whole}


def _ask(server: tuple[str, str], path: str, kind: str, cases: int, seed: int) -> Counter[str]:
    """Hold each answer to so many requests of a kind against the description; how many had which status."""
    import schemathesis
    from schemathesis.generation import GenerationMode
    from schemathesis.specs.openapi import checks

    url, key = server
    seen: Counter[str] = Counter()
    always = [
        schemathesis.checks.not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_headers_conformance,
        checks.response_schema_conformance,
    ]
    with plain_session() as session:

        def one(case: Any) -> None:
            if kind == "small":
                _with_picture(case)
            headers = {"Authorization": f"Bearer {key}"}
            answer = case.call(base_url=url, session=session, headers=headers, timeout=60)
            if answer.status_code == 500 and kind == "wrong" and _UNREAD in answer.content:
                seen["500 of TorchServe's reader of forms"] += 1
                return
            is_refused = kind == "wrong" and not _has_list_in_form(case)
            try:
                case.validate_response(answer, checks=[*always, *[checks.negative_data_rejection] * is_refused])
            except BaseExceptionGroup as error:  # schemathesis' own: what is wrong, and a command that shows it
                each = "; ".join(" ".join(str(inner).split()) for inner in error.exceptions)
                raise AssertionError(f"{path}, {kind}: {each}: {str(error)[:3000]}") from None
            if kind == "small" and answer.status_code != 200:
                rules = [error["message"] for error in answer.json()["errors"]]
                assert rules and all(re.search(_UNSAID, rule) for rule in rules), (
                    f"{path}, {kind}: {answer.status_code}: {answer.content[:500]!r}"
                )
            seen[str(answer.status_code)] += 1

        mode = GenerationMode.NEGATIVE if kind == "wrong" else GenerationMode.POSITIVE
        examine(_drawn(_described()[kind][path]["POST"].as_strategy(mode)), one, cases, seed)
    return seen


@st.composite
def _drawn(draw: st.DrawFn, strategy: "st.SearchStrategy[Any]") -> Any:
    """A case; another where schemathesis (4.32.5) gives its validator a picture in a type that this does not take."""
    try:
        return draw(strategy)
    except ValueError as error:
        if "Unsupported type: 'Binary'" not in str(error):
            raise
        hypothesis.reject()


def _has_list_in_form(case: Any) -> bool:
    """Whether a form may not show what is wrong: a list has a part for each of its values, an empty one none."""
    is_form = case.media_type == MULTIPART and isinstance(case.body, dict)
    return is_form and any(isinstance(value, list) for value in case.body.values())


def _with_picture(case: Any) -> None:
    """Put in a picture for a string that is none: no schema can say what a PNG is."""
    if case.media_type.startswith("image/"):
        case.body = PICTURE
    elif isinstance(case.body, dict) and "image" in case.body:
        case.body["image"] = PICTURE if case.media_type == MULTIPART else base64.b64encode(PICTURE).decode()
