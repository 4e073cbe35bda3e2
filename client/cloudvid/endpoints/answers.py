"""What the endpoints answer: a file, a stream of events that ends in one, or an error body."""

import base64
import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import requests
from pydantic import TypeAdapter, ValidationError

from cloudvid.endpoints import errors
from cloudvid.endpoints.failures import row_of
from cloudvid_schema import protocol
from cloudvid_schema.files import write_file
from cloudvid_schema.protocol import ErrorBody, Event, Failed, Progress, Result, Stage, Started

_WARNINGS = TypeAdapter(tuple[str, ...])
_EVENT: TypeAdapter[Started | Progress | Result | Failed] = TypeAdapter(Event)

OnEvent = Callable[[Started | Progress], None]
"""Called with each event of a running request but the last."""


@dataclass(frozen=True)
class Generated:
    """A picture or a clip whose digest was verified."""

    data: bytes
    media_type: str
    seed: int
    """The seed that was used; drawn by the server if none was sent."""
    model: str
    """Identity of the model, `id@revision`."""
    timings: dict[str, float]
    """Milliseconds of each phase on the server."""
    warnings: tuple[str, ...] = ()
    """What the model ignored in the request."""

    def __repr__(self) -> str:
        return f"<Generated {self.media_type}, {len(self.data):,} bytes, seed {self.seed}, {self.model}>"

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows of a picture."""
        return self.data if self.media_type == protocol.PNG else None

    def _repr_html_(self) -> str | None:
        """What a notebook shows of a clip."""
        if self.media_type != protocol.MP4:
            return None
        url = f"data:{protocol.MP4};base64,{base64.b64encode(self.data).decode()}"
        return f'<video src="{url}" controls loop muted></video>'

    @cached_property
    def sha256(self) -> str:
        """Digest of the file, hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()

    def save(self, path: str | Path) -> Path:
        """Write the file as a whole or not at all.

        Raises:
            OutputError: it cannot be written.
        """
        with writing(Path(path)):
            return write_file(Path(path), self.data)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's errors into ours while a file is written.

    Raises:
        OutputError: it cannot be written.
    """
    if not path.name:
        raise errors.OutputError(f"{path} is not the name of a file")
    try:
        yield
    except OSError as error:
        raise errors.OutputError(f"{path} cannot be written: {error.strerror}", error.errno) from None


def error_body(code: int, content: bytes) -> ErrorBody:
    """The server's error body, or a substitute for other answers (a proxy's page, TorchServe's empty 413)."""
    try:
        return ErrorBody.model_validate_json(content)
    except ValidationError:
        known = {413: "the request is larger than the server accepts", 504: "the proxy's timeout has passed"}
        text = known.get(code) or ascii(content[:200].decode(errors="replace"))
        return ErrorBody(code=code, type="Unknown", message=text)


def failure(stage: Stage, body: ErrorBody) -> errors.CloudVidError:
    """The exception for an error body."""
    text = no_workers(stage) if "has no worker to serve" in body.message else f"{stage} answers {told(body)}"
    return row_of(body).error(text, body)


def told(body: ErrorBody) -> str:
    """An error body in a line."""
    if body.message == "''":  # the answer had no body
        return str(body.code)
    return f"{body.code} {plain(body.type)}: {plain(body.message)}"


def no_workers(stage: Stage) -> str:
    """What to do about a stage that was scaled to 0."""
    return f"{stage} has no workers; start one with `cloudvid scale {stage} 1`"


def plain(text: str) -> str:
    """A server's text for a terminal or a log, with unprintable characters escaped."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def whole(stage: Stage, response: requests.Response) -> Generated:
    """The file in an answer.

    Raises:
        BrokenAnswer: it does not match its digest, or a header is missing.
    """
    data, headers = response.content, response.headers
    digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
    if headers.get(protocol.DIGEST_HEADER) != f"sha-256=:{digest}:":
        raise errors.BrokenAnswer(f"{stage}: the file does not match its {protocol.DIGEST_HEADER}")
    found = re.findall(r"(\w+);dur=(\d+(?:\.\d+)?)", headers.get(protocol.TIMING_HEADER, ""))
    try:
        return Generated(
            data,
            headers.get("Content-Type", ""),
            seed=int(headers[protocol.SEED_HEADER]),
            model=headers[protocol.MODEL_HEADER],
            timings={phase: float(milliseconds) for phase, milliseconds in found},
            warnings=_warnings(headers.get(protocol.WARNINGS_HEADER, "[]")),
        )
    except (KeyError, ValueError):
        lacks = f"{stage}: the answer lacks {protocol.SEED_HEADER} or {protocol.MODEL_HEADER}"
        raise errors.BrokenAnswer(f"{lacks}, or the seed is not a number") from None


def _warnings(header: str) -> tuple[str, ...]:
    """The texts of a header, fit for a terminal. One that cannot be read is no reason to lose a file that is whole."""
    try:
        return tuple(map(plain, _WARNINGS.validate_json(header)))
    except ValidationError:
        return (f"{protocol.WARNINGS_HEADER} cannot be read: {plain(header)}",)


def streamed(stage: Stage, response: requests.Response, on_event: OnEvent) -> Generated:
    """The file at the end of an event stream; `on_event` gets every event before it.

    Raises:
        StageError: the stream ends with an error.
        BrokenAnswer: it ends too early, or the file does not match its digest.
    """
    for line in filter(bytes.strip, _lines(response)):
        try:
            event = _EVENT.validate_json(line)
        except ValidationError:
            raise errors.BrokenAnswer(f"{stage}: a line of the stream is not an event: {line[:80]!a}") from None
        if isinstance(event, Failed):
            raise failure(stage, event)
        if isinstance(event, Result):
            warnings = tuple(map(plain, event.warnings))
            made = Generated(event.data, event.media_type, event.seed, event.model, event.timings, warnings)
            if len(made.data) != event.size or made.sha256 != event.sha256:
                raise errors.BrokenAnswer(f"{stage}: the file does not match its digest")
            return made
        on_event(event)
    raise errors.BrokenAnswer(f"{stage}: the stream ended without a result")


def _lines(response: requests.Response) -> Iterator[bytes]:
    """The lines of a body. (requests' iter_lines copies a long line again with every chunk.)"""
    parts: list[bytes] = []
    for chunk in response.iter_content(2**16):
        *ended, rest = chunk.split(b"\n")
        for end in ended:
            yield b"".join([*parts, end])
            parts = []
        parts.append(rest)
    yield b"".join(parts)
