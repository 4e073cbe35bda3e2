"""The OpenAPI description of the HTTP endpoints: TorchServe's prediction API and the proxy in front of it."""

from typing import Any

from pydantic.json_schema import models_json_schema

from cloudvid_schema import __version__
from cloudvid_schema.protocol import (
    DIGEST_HEADER,
    GIVEN_ID_HEADER,
    IMAGE_TYPES,
    JOB_HEADER,
    JOB_ID,
    JSON,
    MAX_FIELDS,
    MAX_PARAMETERS_BYTES,
    MAX_PARAMETERS_VALUES,
    MEDIA_TYPE,
    MODEL_HEADER,
    MULTIPART,
    NDJSON,
    REQUEST_ID,
    REQUEST_ID_HEADER,
    SEED_HEADER,
    TIMING_HEADER,
    WARNINGS_HEADER,
    Description,
    ErrorBody,
    Failed,
    ImageToVideoRequest,
    JobStatus,
    Progress,
    Result,
    Stage,
    Started,
    TextToImageRequest,
)
from cloudvid_serving.bodies import ACCEPTED

_ERRORS = {
    400: "The body cannot be read; or the token is missing, wrong or expired (type `InvalidKeyException`); or t2i was "
    "sent a query (`QueryNotPassedOn`, from a proxy).",
    401: "From a proxy: the token is missing or unknown.",
    404: "The stage does not exist, or is not registered yet (type `ModelNotFoundException`).",
    405: "The path does not support this method.",
    408: "From a proxy: the request did not arrive in time.",
    409: "The job was cancelled (type `Cancelled`).",
    413: f"The picture is too large, or the parameters are (more than {MAX_PARAMETERS_BYTES} bytes, "
    f"{MAX_PARAMETERS_VALUES} JSON values or {MAX_FIELDS} fields), or the whole request is (then with an empty body).",
    415: "The endpoint does not read this Content-Type.",
    422: "The parameters or the picture break their rules or the operator's limits; `errors` lists each fault. Rules "
    "beyond the schema: a prompt must not be blank, max_guidance_scale must be at least min_guidance_scale, an integer "
    "must have no decimal point, and a form must give each parameter only once.",
    429: "From a proxy: too many concurrent connections.",
    500: "The stage failed, or its worker died.",
    501: "From a proxy: the Transfer-Encoding is not chunked.",
    502: "From a proxy: the model server cannot be reached, or closed the connection early.",
    503: "The queue is full, or the stage has no worker, or (from a proxy) the model server is not up.",
    504: "From a proxy: the model server did not answer in time.",
    507: "Out of memory.",
}
_OF_STATE = (400, 401, 404, 405, 429, 502, 503, 504)
"""Errors that `/ping` and `/ready` can return."""


_JOB_ID = {"type": "string", "pattern": f"^{JOB_ID}$"}


def _operation(stage: Stage, bodies: dict[str, Any], query: list[dict[str, Any]]) -> dict[str, Any]:
    def header(text: str) -> dict[str, Any]:
        # An event stream has none of these headers; its events carry the same information.
        return {"description": text, "required": False, "schema": {"type": "string"}}

    file = {
        "description": "The file, or an event stream if the request has `Accept: application/x-ndjson`.",
        "headers": {
            SEED_HEADER: header(
                "The seed that was used. (Only with a file; an event stream has it in its first event.)"
            ),
            MODEL_HEADER: header("Identity of the model, `id@revision`."),
            DIGEST_HEADER: header("`sha-256=:<base64>:` of the body (RFC 9530)."),
            TIMING_HEADER: header("Milliseconds spent in denoise, decode and encode."),
            GIVEN_ID_HEADER: header("The request's `X-Request-Id`, or else the server's own id of it."),
            WARNINGS_HEADER: header("What the model ignored in the request: a JSON array of strings."),
        },
        "content": {
            MEDIA_TYPE[stage]: {"schema": {"type": "string", "format": "binary"}},
            NDJSON: {"schema": {"$ref": "#/components/schemas/Event"}},
        },
    }
    job = {
        "name": JOB_HEADER,
        "in": "header",
        "schema": _JOB_ID,
        "description": "Names the job, so that it can be found and cancelled while it waits and runs: see `/jobs`.",
    }
    request_id = {
        "name": REQUEST_ID_HEADER,
        "in": "header",
        "schema": {"type": "string", "pattern": f"^{REQUEST_ID}$"},
        "description": "Names the request in the worker's log. One that breaks the pattern is ignored.",
    }
    return {
        "tags": [stage],
        "parameters": [*query, job, request_id],
        "requestBody": {"required": True, "content": bodies},
        "responses": {"200": file} | _failures(*_ERRORS),
    }


def _failures(*codes: int) -> dict[str, Any]:
    content = {JSON: {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
    return {str(code): {"description": _ERRORS[code], "content": content} for code in codes}


def _answer(description: str, **properties: Any) -> dict[str, Any]:
    """A response with one JSON object."""
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"description": description, "content": {JSON: {"schema": schema}}}


def _states() -> dict[str, Any]:
    """The paths that report the state of the stages."""
    stage = {"name": "stage", "in": "query", "schema": {"enum": list(Stage)}}
    counts = {"type": "object", "additionalProperties": {"type": "integer"}, "description": "Workers by status."}
    restarts = {
        "type": "object",
        "properties": {"count": {"type": "integer"}, "last": {"type": "number", "description": "Unix time."}},
        "description": "Workers that had died and were started again, since the server's start; left out if none.",
    }
    state = {
        "type": ["object", "null"],
        "properties": {"workers": counts, "pending_requests": {"type": "integer"}, "restarts": restarts},
        "description": "Null if the model server does not report it.",
    }
    stages = {"type": "object", "additionalProperties": state, "description": "By stage."}
    busy = _failures(503)["503"]["content"][JSON]["schema"]
    not_ready = _answer("A stage has no ready worker, or the model server is not up.", stages=stages)
    not_ready["content"][JSON]["schema"] = {"anyOf": [not_ready["content"][JSON]["schema"], busy]}
    text = {"type": "string"}
    return {
        "/ping": {
            "get": {
                "tags": ["state"],
                "summary": "Whether the server is up",
                "description": "Answers 200 even if workers are still loading or there are none: see `/ready`.",
                "parameters": [stage | {"description": "Which stage's server, if a proxy serves two."}],
                "responses": _failures(*_OF_STATE)
                | {
                    "200": _answer("The server is up.", status=text),
                    "500": _answer("Workers of at least one stage have been given up permanently.", status=text),
                },
            }
        },
        "/ready": {
            "get": {
                "tags": ["state"],
                "summary": "Whether the stages have ready workers",
                "description": "Only a proxy answers this, not TorchServe. With several hosts, a ready one answers.",
                "parameters": [stage | {"description": "Only this stage; required with two servers or several hosts."}],
                "responses": _failures(*_OF_STATE)
                | {"200": _answer("All requested stages have a ready worker.", stages=stages), "503": not_ready},
            }
        },
    }


def _jobs() -> dict[str, Any]:
    """The paths about requests that wait or run."""
    stage = {
        "name": "stage",
        "in": "query",
        "schema": {"enum": list(Stage)},
        "description": "Only this stage; required with two servers or several hosts.",
    }
    job = {"name": "job", "in": "path", "required": True, "schema": _JOB_ID}
    prefix = {"name": "prefix", "in": "query", "required": True, "schema": _JOB_ID, "description": "Of the ids."}
    jobs = {"type": "array", "items": {"$ref": "#/components/schemas/JobStatus"}}
    about = {"tags": ["jobs"]}
    beside = "A proxy answers this, and on the server's own host the port five above TorchServe's."
    described = _answer("What they said last.")
    described["content"][JSON]["schema"] = {"$ref": "#/components/schemas/Description"}
    return {
        "/description": {
            "get": about
            | {
                "summary": "What a stage's workers say of themselves: model, pace, limits",
                "description": f"{beside} With several hosts, one of them answers.",
                "parameters": [stage | {"required": True}],
                "responses": _failures(*_OF_STATE, 422) | {"200": described},
            }
        },
        "/jobs": {
            "get": about
            | {
                "summary": "The requests that wait or run",
                "description": f"{beside} With several hosts, one of them answers.",
                "parameters": [stage],
                "responses": _failures(*_OF_STATE) | {"200": _answer("The oldest comes first.", jobs=jobs)},
            },
            "delete": about
            | {
                "summary": "Cancel every job whose id begins so",
                "description": f"{beside} With several hosts, all of them are told.",
                "parameters": [stage, prefix],
                "responses": _failures(*_OF_STATE, 422) | {"202": _answer("What is cancelled.", jobs=jobs)},
            },
        },
        "/jobs/{job}": {
            "put": about
            | {
                "summary": "Announce a job that is about to be sent, so that it is listed while it waits",
                "description": beside,
                "parameters": [job, stage | {"required": True}],
                "responses": _failures(*_OF_STATE, 422) | {"201": _answer("It is listed.", jobs=jobs)},
            },
            "delete": about
            | {
                "summary": "Cancel a job, whether it waits, runs, or is yet to come",
                "description": f"{beside} With several hosts, all of them are told. A running job ends after the step "
                "in hand; one that waits is answered when its turn comes. Both get 409.",
                "parameters": [job, stage],
                "responses": _failures(*_OF_STATE) | {"202": _answer("What is known of the job.", jobs=jobs)},
            },
        },
    }


def openapi() -> dict[str, Any]:
    """OpenAPI description of both endpoints and of the paths that report their state."""
    events = (Started, Progress, Result, Failed)
    models = (TextToImageRequest, ImageToVideoRequest, ErrorBody, *events, JobStatus, Description)
    _, definitions = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    schemas: dict[str, Any] = definitions["$defs"]
    lines = [{"$ref": f"#/components/schemas/{event.__name__}"} for event in events]
    schemas["Event"] = {"description": "One line of an event stream.", "oneOf": lines}
    i2v = schemas["ImageToVideoRequest"]
    i2v_properties = i2v["properties"]
    picture = {"type": "string", "description": "The picture."}
    json_body = {
        **i2v,
        "properties": {"image": picture | {"contentEncoding": "base64"}, **i2v_properties},
        "required": ["image"],
    }
    parameters = {"$ref": "#/components/schemas/ImageToVideoRequest"}
    form = {
        "type": "object",
        "properties": {"image": picture | {"format": "binary"}, "parameters": parameters, **i2v_properties},
        "required": ["image"],
        "additionalProperties": False,
    }
    query = [
        {"name": name, "in": "query", "schema": field, "description": field["description"]}
        for name, field in i2v_properties.items()
        if name != "metadata"
    ]
    model_name = {"name": "model_name", "in": "query", "required": True, "schema": {"const": "i2v"}}
    raw = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in IMAGE_TYPES}
    t2i_body = {kind: {"schema": {"$ref": "#/components/schemas/TextToImageRequest"}} for kind in ACCEPTED[Stage.T2I]}
    i2v_body = {JSON: {"schema": json_body}, MULTIPART: {"schema": form}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "CloudVid endpoints",
            "version": __version__,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "TorchServe's prediction API for the archives t2i and i2v, direct or through a proxy.",
        },
        "servers": [{"url": "http://127.0.0.1:8080"}],
        "security": [{"token": []}],
        "paths": {
            "/predictions/t2i": {"post": {"summary": "Picture from a prompt", **_operation(Stage.T2I, t2i_body, [])}},
            "/predictions/i2v": {"post": {"summary": "Clip from a picture", **_operation(Stage.I2V, i2v_body, [])}},
            "/invocations": {
                "post": {
                    "summary": "Clip from a picture sent as the body, with parameters in the query "
                    "(TorchServe drops the query of /predictions)",
                    **_operation(Stage.I2V, raw, [model_name, *query]),
                }
            },
            **_states(),
            **_jobs(),
        },
        "components": {"schemas": schemas, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }
