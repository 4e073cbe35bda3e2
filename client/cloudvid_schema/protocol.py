"""The wire contract of both endpoints: requests, media types, headers, events and error bodies.

An endpoint is TorchServe's `POST /predictions/{t2i|i2v}`. A request is answered with the file itself, or, where it
says `Accept: application/x-ndjson`, with a stream of the events below, one JSON object a line.
"""

import base64
import json
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, WithJsonSchema
from pydantic_core import PydanticCustomError

from cloudvid_schema.faults import Fault
from cloudvid_schema.parameters import ImageToVideoParameters, TextToImageParameters

JSON = "application/json"
NDJSON = "application/x-ndjson"
MULTIPART = "multipart/form-data"
PNG = "image/png"
MP4 = "video/mp4"
IMAGE_TYPES = (PNG, "image/jpeg", "image/webp")
"""Media types of a picture that `i2v` takes."""

SEED_HEADER = "CloudVid-Seed"
MODEL_HEADER = "CloudVid-Model"
"""Identity of the model: `id@revision`; a local directory's revision is a fingerprint of its files."""
DIGEST_HEADER = "Content-Digest"
"""`sha-256=:<base64>:` of the body (RFC 9530)."""
WARNINGS_HEADER = "CloudVid-Warnings"
"""What the model ignored in the request: a JSON array of texts, in ASCII. Absent where there are none."""
REQUEST_ID_HEADER = "X-Request-Id"
"""Names a request in the worker's log. One that is not `REQUEST_ID` is ignored."""
GIVEN_ID_HEADER = "CloudVid-Request-Id"
"""Of the answer: the request's `X-Request-Id`, in place of which TorchServe sends an id of its own."""
REQUEST_ID = r"[A-Za-z0-9][A-Za-z0-9._:/+=@-]{0,127}"
JOB_HEADER = "CloudVid-Job"
"""Names the job of a request, so that it can be found and cancelled: `JOB_ID`."""
MAX_JOB_ID = 140
JOB_ID = rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_JOB_ID - 1}}}"
JOB_ID_RULE = f"1 to {MAX_JOB_ID} letters, digits, '.', '_' or '-', the first a letter or digit"
TIMING_HEADER = "Server-Timing"
"""Milliseconds of each phase: `denoise;dur=812.3, decode;dur=95.0, encode;dur=31.2`."""

MAX_METADATA_BYTES = 8192
"""Largest `metadata` object, as compact UTF-8 JSON."""
MAX_DEPTH = 32
"""Deepest nesting of `metadata`."""
MAX_IMAGE_BYTES = 32 * 2**20
"""Largest picture file that `i2v` takes. TorchServe's `max_request_size` leaves room for its base64 form."""
MAX_PARAMETERS_BYTES = 256 * 2**10
"""Most bytes of a request without its picture, many times what its longest parameters take; as `deploy/nginx.conf`."""
MAX_PARAMETERS_VALUES = 2**14
"""Most values in a JSON body. Metadata and prompts have fewer characters than that."""
MAX_FIELDS = 32
"""Most fields of a form or query."""

RECIPE_KEY = "cloudvid"
"""Keyword of the PNG's iTXt chunk that holds the recipe; an MP4 has it as its comment."""

TINY_MODEL = "cloudvid-tiny"
"""Model names that begin so have small random weights: what they make is noise."""
DEMO_MODEL = "cloudvid-demo"
"""Model names that begin so are of the demo pair: toys that know a few things."""


class Stage(StrEnum):
    """The two stages; the value is the endpoint's and the model archive's name."""

    T2I = "t2i"
    I2V = "i2v"


MEDIA_TYPE = {Stage.T2I: PNG, Stage.I2V: MP4}
"""What each stage answers with."""


def depth(value: object) -> int:
    """How deeply objects and arrays are nested: 0 for a plain value."""
    level, nested = 0, [value]
    while nested := [
        inner
        for outer in nested
        if isinstance(outer, dict | list)
        for inner in (outer.values() if isinstance(outer, dict) else outer)
    ]:
        level += 1
    return level


def _small(metadata: dict[str, Any] | None) -> dict[str, Any] | None:
    if metadata is None:
        return None
    if depth(metadata) > MAX_DEPTH:
        raise PydanticCustomError("metadata_depth", "must be nested at most {limit} deep", {"limit": MAX_DEPTH})
    try:
        size = len(json.dumps(metadata, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode())
    except (TypeError, ValueError):
        raise PydanticCustomError("metadata_json", "must be plain JSON of finite numbers and valid Unicode") from None
    if size > MAX_METADATA_BYTES:
        rule = "must be at most {limit} bytes as JSON; this has {size} bytes"
        raise PydanticCustomError("metadata_size", rule, {"limit": MAX_METADATA_BYTES, "size": size})
    return metadata


class _FileOptions(BaseModel):
    metadata: Annotated[dict[str, Any] | None, AfterValidator(_small)] = Field(
        None, description=f"A JSON object of at most {MAX_METADATA_BYTES} bytes, stored in the file beside the recipe."
    )
    embed_recipe: bool = Field(True, description="Whether the file carries its recipe and the metadata.")


class TextToImageRequest(_FileOptions, TextToImageParameters):
    """Body of `POST /predictions/t2i`."""

    stage: ClassVar[Stage] = Stage.T2I


class ImageToVideoRequest(_FileOptions, ImageToVideoParameters):
    """Body of `POST /predictions/i2v`, without the picture."""

    stage: ClassVar[Stage] = Stage.I2V


Request = TextToImageRequest | ImageToVideoRequest
REQUESTS: dict[Stage, type[Request]] = {Stage.T2I: TextToImageRequest, Stage.I2V: ImageToVideoRequest}
"""What each stage is asked."""


class ParameterError(BaseModel):
    """One refused parameter."""

    parameter: str
    message: str
    input: Any = None


class ErrorBody(BaseModel):
    """Body of every error response; TorchServe's own errors have only the first three fields."""

    code: int
    type: str
    message: str
    errors: list[ParameterError] = []


class RequestError(Exception):
    """A request that a stage does not carry out, with the answer that says why.

    Args:
        code: HTTP status: 400 unreadable body, 409 cancelled, 413 too large, 415 media type, 422 parameters,
            507 out of memory, 500 the stage failed.
        type: machine-readable name of the kind, e.g. `InvalidParameters`.
        message: for a person; never a traceback, never a path of the server.
        faults: the parameters at fault.
    """

    def __init__(self, code: int, type: str, message: str, faults: Iterable[Fault] = ()) -> None:
        super().__init__(message)
        errors = [ParameterError(parameter=fault.place, message=fault.message, input=fault.input) for fault in faults]
        self.body = ErrorBody(code=code, type=type, message=message, errors=errors)

    @classmethod
    def invalid(cls, faults: list[Fault]) -> "RequestError":
        """422: these parameters break their rules."""
        return cls(422, "InvalidParameters", "; ".join(map(str, faults)), faults)

    @classmethod
    def unreadable(cls, message: str) -> "RequestError":
        """400: the body cannot be read at all."""
        return cls(400, "UnreadableBody", message)

    @classmethod
    def cancelled(cls) -> "RequestError":
        """409: somebody asked for the job's end."""
        return cls(409, "Cancelled", "the job was cancelled")


class Description(BaseModel):
    """What an endpoint says of itself: `GET :8081/models/{stage}?customized=true`, one entry a worker."""

    stage: Stage
    model: str
    """Identity of the model, `id@revision`."""
    seconds: dict[str, float] = {}
    """Seconds per million pixels (of each frame) that this worker measured: of a denoising step, of decoding. Empty
    before its first request."""
    device: str = ""
    """`cuda:0` or `cpu`."""
    precision: str = ""
    """Of the weights: `fp16`, `bf16` or `fp32`."""
    settings: dict[str, Any] = {}
    """What the operator chose, as it is in force; the model and its sources are not repeated."""
    limits: dict[str, float] = {}
    """What a request may ask for, where the operator allows less than the schema."""
    peak_memory: int | None = None
    """Most bytes that this worker has held: of its GPU, or resident where it runs on a CPU."""
    num_frames: int | None = None
    """Of i2v: how many frames a clip has where the request does not say."""
    vocabulary: list[str] | None = None
    """Of t2i: the words that the model knows, where it knows only some."""
    prompt_tokens: int | None = None
    """Of t2i: how many tokens of a prompt the model reads."""


Phase = Literal["denoise", "decode", "encode"]


class JobStatus(BaseModel):
    """A request that waits or is being carried out: an entry of the answer to `GET /jobs`."""

    id: str = Field(pattern=f"^{JOB_ID}$")
    """From the header `CloudVid-Job`, or TorchServe's own id of the request."""
    stage: Stage
    state: Literal["queued", "running"]
    since: float
    """Unix time at which it was announced or began to run."""
    phase: Phase | None = None
    step: int | None = None
    """Steps of the phase that are done, as of the last second."""
    steps: int | None = None
    worker: int | None = None
    """Process id of the worker."""


class Started(BaseModel):
    """First event: the request was accepted and the model is running."""

    event: Literal["started"] = "started"
    stage: Stage
    seed: int
    model: str


class Progress(BaseModel):
    """A step of a phase is done."""

    event: Literal["progress"] = "progress"
    phase: Phase
    step: int
    steps: int


_AsBase64 = PlainSerializer(lambda data: base64.b64encode(data).decode(), str, when_used="json")
"""pydantic's own is that of URLs."""


class Result(BaseModel):
    """Last event of a successful request."""

    model_config = ConfigDict(val_json_bytes="base64")

    event: Literal["result"] = "result"
    media_type: str
    size: int
    """Bytes of the file."""
    sha256: str
    """Digest of the file, hexadecimal."""
    seed: int
    model: str
    timings: dict[str, float]
    """Milliseconds of each phase."""
    warnings: list[str] = []
    """What the model ignored in the request."""
    recipe: dict[str, Any]
    """What made the file: see the file's own metadata."""
    data: Annotated[bytes, _AsBase64, WithJsonSchema({"type": "string", "contentEncoding": "base64"})]
    """The file; in JSON in base64."""


class Failed(ErrorBody):
    """Last event of a request that failed: the error body, as an event."""

    event: Literal["error"] = "error"


Event = Annotated[Started | Progress | Result | Failed, Field(discriminator="event")]
"""One line of a progress stream. A stream that ends on neither a result nor an error has failed."""
