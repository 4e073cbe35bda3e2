"""The OpenAPI description of what answers over HTTP: TorchServe's prediction API, and the proxy before it."""

from typing import Any

from pydantic.json_schema import models_json_schema

from cloudvid_schema import __version__
from cloudvid_schema.protocol import (
    DIGEST_HEADER,
    IMAGE_TYPES,
    JSON,
    MEDIA_TYPE,
    MODEL_HEADER,
    MULTIPART,
    NDJSON,
    SEED_HEADER,
    TIMING_HEADER,
    WARNINGS_HEADER,
    ErrorBody,
    Failed,
    ImageToVideoRequest,
    Progress,
    Result,
    Stage,
    Started,
    TextToImageRequest,
)
from cloudvid_serving.bodies import ACCEPTED

_ERRORS = {
    400: "The body cannot be read, or (type `InvalidKeyException`) the token is missing, wrong or expired, or "
    "(`QueryNotPassedOn`, a proxy's) t2i was sent a query.",
    401: "A proxy's: the token is missing or unknown.",
    404: "There is no such stage, or it is not registered yet (type `ModelNotFoundException`).",
    405: "The method is another one.",
    408: "A proxy's: the request did not arrive in time.",
    413: "The picture, or the whole request (then with an empty body), is too large.",
    415: "The endpoint does not read this Content-Type.",
    422: "Parameters or the picture break their rules, or the operator's limits; `errors` names each. Beyond the "
    "schema: a prompt is not blank, max_guidance_scale is at least min_guidance_scale, an integer has no decimal "
    "point, a form gives each parameter once.",
    429: "A proxy's: too many connections at once.",
    500: "The stage failed, or its worker died.",
    501: "A proxy's: a Transfer-Encoding other than chunked.",
    502: "A proxy's: the model server cannot be reached, or broke off.",
    503: "The queue is full, or the stage has no worker, or (a proxy's) the model server is not up.",
    504: "A proxy's: the model server did not answer in time.",
    507: "Out of memory.",
}
_OF_STATE = (400, 401, 404, 405, 429, 502, 503, 504)
"""Those that a question about the state can meet."""


def _operation(stage: Stage, bodies: dict[str, Any], query: list[dict[str, Any]]) -> dict[str, Any]:
    def header(text: str) -> dict[str, Any]:
        # An event stream has none of these headers: its events say the same.
        return {"description": text, "required": False, "schema": {"type": "string"}}

    file = {
        "description": "The file, or the events of a request with `Accept: application/x-ndjson`.",
        "headers": {
            SEED_HEADER: header("The seed in force. (With a file; an event stream has it in its first event.)"),
            MODEL_HEADER: header("Identity of the model, `id@revision`."),
            DIGEST_HEADER: header("`sha-256=:<base64>:` of the body (RFC 9530)."),
            TIMING_HEADER: header("Milliseconds of denoise, decode, encode."),
            WARNINGS_HEADER: header("What the model ignored in the request: a JSON array of texts."),
        },
        "content": {
            MEDIA_TYPE[stage]: {"schema": {"type": "string", "format": "binary"}},
            NDJSON: {"schema": {"$ref": "#/components/schemas/Event"}},
        },
    }
    return {
        "tags": [stage],
        "parameters": query,
        "requestBody": {"required": True, "content": bodies},
        "responses": {"200": file} | _failures(*_ERRORS),
    }


def _failures(*codes: int) -> dict[str, Any]:
    content = {JSON: {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
    return {str(code): {"description": _ERRORS[code], "content": content} for code in codes}


def _told(description: str, **properties: Any) -> dict[str, Any]:
    """An answer of one JSON object."""
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"description": description, "content": {JSON: {"schema": schema}}}


def _states() -> dict[str, Any]:
    """What tells how the stages are."""
    stage = {"name": "stage", "in": "query", "schema": {"enum": list(Stage)}}
    counts = {"type": "object", "additionalProperties": {"type": "integer"}, "description": "Workers by status."}
    state = {
        "type": ["object", "null"],
        "properties": {"workers": counts, "pending_requests": {"type": "integer"}},
        "description": "Null where the model server does not say.",
    }
    stages = {"type": "object", "additionalProperties": state, "description": "By stage."}
    busy = _failures(503)["503"]["content"][JSON]["schema"]
    not_ready = _told("A stage has no worker that is ready, or the model server is not up.", stages=stages)
    not_ready["content"][JSON]["schema"] = {"anyOf": [not_ready["content"][JSON]["schema"], busy]}
    text = {"type": "string"}
    return {
        "/ping": {
            "get": {
                "tags": ["state"],
                "summary": "Whether the server is up",
                "description": "Also where workers still load or there are none: see `/ready`.",
                "parameters": [stage | {"description": "Whose server, where a proxy stands before two."}],
                "responses": _failures(*_OF_STATE)
                | {
                    "200": _told("It is.", status=text),
                    "500": _told("Workers of some stage have been given up for good.", status=text),
                },
            }
        },
        "/ready": {
            "get": {
                "tags": ["state"],
                "summary": "Whether stages have workers that are ready",
                "description": "Answered by a proxy, not by TorchServe; before several hosts, by one that is ready.",
                "parameters": [
                    stage | {"description": "Only this one; needed if two servers or several hosts stand behind."}
                ],
                "responses": _failures(*_OF_STATE) | {"200": _told("They have.", stages=stages), "503": not_ready},
            }
        },
    }


def openapi() -> dict[str, Any]:
    """OpenAPI description of both endpoints, and of what tells their state."""
    models = (TextToImageRequest, ImageToVideoRequest, ErrorBody, Started, Progress, Result, Failed)
    _, definitions = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    schemas: dict[str, Any] = definitions["$defs"]
    events = [{"$ref": f"#/components/schemas/{name}"} for name in ("Started", "Progress", "Result", "Failed")]
    schemas["Event"] = {"description": "One line of an event stream.", "oneOf": events}
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
            "description": "TorchServe's prediction API of the archives t2i and i2v, as it is and through a proxy.",
        },
        "servers": [{"url": "http://127.0.0.1:8080"}],
        "security": [{"token": []}],
        "paths": {
            "/predictions/t2i": {"post": {"summary": "A picture of a prompt", **_operation(Stage.T2I, t2i_body, [])}},
            "/predictions/i2v": {"post": {"summary": "A clip of a picture", **_operation(Stage.I2V, i2v_body, [])}},
            "/invocations": {
                "post": {
                    "summary": "A clip of a picture sent as the body, parameters in the query "
                    "(TorchServe drops the query of /predictions)",
                    **_operation(Stage.I2V, raw, [model_name, *query]),
                }
            },
            **_states(),
        },
        "components": {"schemas": schemas, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }
