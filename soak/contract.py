"""Z3: schemathesis asks the running server what docs/openapi.json says that it takes, and what it does not.

The server takes small requests alone, as an operator may set it, so that each case costs milliseconds: what is right
but large is refused with 422, which the description names.
"""

import copy
import json
import re
from collections import Counter
from concurrent.futures import Future
from functools import cache
from typing import Any

import hypothesis
import requests
from parameter_limits import PICTURE

from cloudvid_schema.protocol import MULTIPART, Stage
from soak import ROOT
from soak.case import Case, Wrong, check
from soak.lane import on_each_core
from soak.report import Report, Round
from soak.servers import served

CASES = 100
"""Of one round."""
_SHORT_CASES = 5
_DESCRIPTION: dict[str, Any] = json.loads((ROOT / "docs/openapi.json").read_text())
_LIMITS = {
    "CLOUDVID_T2I_MAX_PIXELS": "4096", "CLOUDVID_T2I_MAX_STEPS": "2", "CLOUDVID_I2V_MAX_PIXELS": "4096",
    "CLOUDVID_I2V_MAX_STEPS": "2", "CLOUDVID_I2V_MAX_FRAMES": "2",
}  # fmt: skip
_SMALL = {"width": 64, "height": 64, "num_inference_steps": 1, "num_frames": 2}
_UNREAD = b"ErrorDataDecoderException"
"""The type of TorchServe's own answer to a form that it cannot read: the handler never sees it."""
_UNSAID = (
    r"not be blank|at least min_guidance_scale|an integer, got -?\d+\.0|given twice"
    r"|plain JSON|at most \d+ bytes|most 32 deep"
)
"""Rules that no schema can say; the description says them in words."""
_PATHS = tuple(path for path, operations in _DESCRIPTION["paths"].items() if "post" in operations)
"""Those of the stages."""
_KINDS = ("right", "small", "wrong")


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


class _Asking:
    """A server, and the checks of schemathesis that hold each of its answers against the description."""

    def __init__(self, url: str, key: str) -> None:
        import schemathesis
        from schemathesis.specs.openapi import checks

        self._url = url
        self._session = requests.Session()
        self._session.trust_env = False
        self._headers = {"Authorization": f"Bearer {key}"}
        self._checks = [
            schemathesis.checks.not_a_server_error,
            checks.status_code_conformance,
            checks.content_type_conformance,
            checks.response_headers_conformance,
            checks.response_schema_conformance,
        ]
        self._refused = checks.negative_data_rejection
        whole, small = (schemathesis.openapi.from_dict(each) for each in (_DESCRIPTION, _small_description()))
        self._described = {"right": whole, "small": small, "wrong": whole}

    def ask(self, path: str, kind: str, seed: int, cases: int) -> Counter[str]:
        """So many cases of an endpoint, of one kind; how many had which status."""
        from schemathesis.generation import GenerationMode

        seen: Counter[str] = Counter()

        def one(case: Any) -> None:
            if kind == "small":
                _with_picture(case)
            answer = case.call(base_url=self._url, session=self._session, headers=self._headers, timeout=60)
            if answer.status_code == 500 and kind == "wrong" and _UNREAD in answer.content:
                seen["500 of TorchServe's reader of forms"] += 1
                return
            is_to_be_refused = kind == "wrong" and not _has_list_in_form(case)
            try:
                case.validate_response(answer, checks=[*self._checks, *([self._refused] if is_to_be_refused else [])])
            except BaseExceptionGroup as error:  # schemathesis' own, of all checks that failed
                raise Wrong(f"{path}, {kind}: {_said(error)}") from None
            said = f"{path}, {kind}: {answer.status_code}: {answer.content[:500]!r}"
            if kind == "small" and answer.status_code != 200:
                rules = [error["message"] for error in answer.json()["errors"]]
                check(rules and all(re.search(_UNSAID, rule) for rule in rules), said)
            seen[str(answer.status_code)] += 1

        mode = GenerationMode.NEGATIVE if kind == "wrong" else GenerationMode.POSITIVE
        test = hypothesis.given(_drawn(self._described[kind][path]["POST"].as_strategy(mode)))(one)
        # fmt: off
        test = hypothesis.settings(
            max_examples=cases, database=None, deadline=None, print_blob=False, report_multiple_bugs=False,
            phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
            suppress_health_check=list(hypothesis.HealthCheck),
        )(test)
        # fmt: on
        hypothesis.seed(seed)(test)()
        return seen


@hypothesis.strategies.composite
def _drawn(draw: hypothesis.strategies.DrawFn, strategy: hypothesis.strategies.SearchStrategy[Any]) -> Any:
    """A case; another where schemathesis (4.32.5) gives its validator a picture in a type that this does not take."""
    try:
        return draw(strategy)
    except ValueError as error:
        if "Unsupported type: 'Binary'" not in str(error):
            raise
        hypothesis.reject()


_asking = cache(_Asking)
"""One for each process."""


def _asked(server: tuple[str, str], path: str, kind: str, seed: int, cases: int) -> Counter[str]:
    """One round, in a process of its own: making the requests costs more than answering them."""
    return _asking(*server).ask(path, kind, seed, cases)


def _has_list_in_form(case: Any) -> bool:
    """Whether a form may not show what is wrong: a list has a part for each of its values, an empty one none."""
    return (
        case.media_type == MULTIPART
        and isinstance(case.body, dict)
        and any(isinstance(value, list) for value in case.body.values())
    )


def _with_picture(case: Any) -> None:
    """A picture instead of a string that is none: no schema can say what a PNG is."""
    import base64

    if case.media_type.startswith("image/"):
        case.body = PICTURE
    elif isinstance(case.body, dict) and "image" in case.body:
        case.body["image"] = PICTURE if case.media_type == MULTIPART else base64.b64encode(PICTURE).decode()


def _said(error: BaseExceptionGroup[Any]) -> str:
    """Each thing that is wrong, and a command that shows it; pictures are cut short."""
    each = "; ".join(" ".join(str(inner).split()) for inner in error.exceptions)
    return f"{each}: {str(error)[:3000]}"


def _run(report: Report) -> None:
    kinds = [(path, kind) for kind in _KINDS for path in _PATHS]
    cases = CASES if report.timed else _SHORT_CASES
    with served(report.folder, _LIMITS) as running, on_each_core(is_short=not report.timed) as pool:
        pids = {stage: running.pids(stage) for stage in Stage}
        server = running.url, json.loads(running.key_file.read_text())["inference"]["key"]

        def ask(each: Round) -> tuple[Round, str, str, Future[Counter[str]]]:
            path, kind = kinds[each.number % len(kinds)]
            return each, path, kind, pool.submit(_asked, server, path, kind, each.draw.randrange(2**32), cases)

        for each, path, kind, future in [ask(each) for each in report.rounds()]:
            with each:
                seen = future.result()
                report.count_of(f"{path} {kind}", seen.total())
                for status, count in sorted(seen.items()):
                    report.count_of(status, count)
        if {stage: running.pids(stage) for stage in Stage} != pids:
            report.fail("a worker was replaced")
    check(report.counts["200"] or report.only is not None, "nothing was ever carried out")


CASE = Case(
    "Z3",
    "schemathesis on docs/openapi.json against the running server: right, small and wrong requests of the stages' "
    "endpoints, in each form",
    "no 5xx but TorchServe's own for a form that it cannot read; what is wrong is 4xx; "
    "each answer has a status, media type, headers and body that are described",
    count=len(_PATHS) * len(_KINDS) * 7,
    short=len(_PATHS) * len(_KINDS),
    run=_run,
    unit=f"rounds of {CASES} requests",
    needs=("schemathesis",),
)
