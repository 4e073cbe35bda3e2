"""`Client`: one call for a picture, one for a clip, against a running model server."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from pydantic import ValidationError

from cloudvid import errors
from cloudvid.answers import Generated, OnEvent, error_body, failure, streamed, whole
from cloudvid.connection import DEFAULT_SERVER, Connection, address, next_port, plain_session, reason, timed_out
from cloudvid.credentials import RUN_KEY_FILE, Credentials
from cloudvid_schema.faults import Fault, faults_of
from cloudvid_schema.protocol import (
    JSON,
    MAX_IMAGE_BYTES,
    MEDIA_TYPE,
    NDJSON,
    Description,
    ImageToVideoRequest,
    Request,
    Stage,
    TextToImageRequest,
)

_CONNECT_SECONDS = 10.0
_KEY_FILE_SECONDS = 15.0
_UNHEALTHY_SECONDS = 20.0  # a worker that died once is back in less; one that cannot load never is
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Readiness:
    """Workers of one stage, as the management API counts them."""

    stage: Stage
    ready: int
    workers: int


class Client:
    """Talks to the two endpoints.

    Args:
        server: address of the model server.
        t2i_url: address of the text-to-image endpoint's server, where it is another one.
        i2v_url: likewise for image to video.
        management: address of the management API; default: the port above the server's.
        token: fixed token for the endpoints.
        key_file: TorchServe's `key_file.json`; default: `.run/key_file.json`, for a server on this machine.
        timeout: seconds without a sign of life after which a request has failed.
        session: the HTTP session to use; default: one that ignores proxies, netrc and redirects.
        sleep: how to wait.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        t2i_url: str | None = None,
        i2v_url: str | None = None,
        management: str | None = None,
        token: str | None = None,
        key_file: str | Path | None = None,
        timeout: float = 3600.0,
        session: requests.Session | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._urls = {Stage.T2I: address(t2i_url or server), Stage.I2V: address(i2v_url or server)}
        self._management = address(management) if management else None
        if key_file is None and token is None and RUN_KEY_FILE.is_file() and self._is_local():
            key_file = RUN_KEY_FILE
        # A token for the endpoints goes to the management API only where its address was given, not guessed.
        credentials = Credentials(token, Path(key_file) if key_file else None, bool(management))
        self._connection = Connection(session or plain_session(), credentials)
        if token is not None and not (token.isascii() and token.isprintable()):
            raise errors.Unauthorized("the token has characters that no HTTP header can carry")
        self.timeout = timeout
        """Seconds without a sign of life after which a request has failed."""
        self._sleep = sleep
        self._clock = clock

    def text_to_image(
        self, prompt: str, *, metadata: dict[str, Any] | None = None, on_event: OnEvent | None = None, **parameters: Any
    ) -> Generated:
        """A PNG picture of a prompt.

        Args:
            prompt: what the picture shows.
            metadata: stored in the file.
            on_event: told of each step; without it the answer comes in one piece.
            **parameters: of `TextToImageParameters`, e.g. `width=768, seed=7`.

        Raises:
            InvalidRequest: a parameter breaks its rule; nothing was sent.
            ServerUnavailable: the server cannot be reached or refuses the token.
            StageError: the request failed.
        """
        request = _validated(TextToImageRequest, {"prompt": prompt, "metadata": metadata, **parameters})
        return self.send(request, on_event=on_event)

    def image_to_video(
        self,
        image: bytes | str | Path,
        *,
        metadata: dict[str, Any] | None = None,
        on_event: OnEvent | None = None,
        **parameters: Any,
    ) -> Generated:
        """An MP4 clip that begins with a picture.

        Args:
            image: a PNG, JPEG or WebP file, as bytes or a path.
            metadata: stored in the file.
            on_event: told of each step; without it the answer comes in one piece.
            **parameters: of `ImageToVideoParameters`, e.g. `fps=6, num_frames=25`.

        Raises:
            InvalidRequest: a parameter breaks its rule; nothing was sent.
            ServerUnavailable: the server cannot be reached or refuses the token.
            StageError: the request failed.
        """
        request = _validated(ImageToVideoRequest, {"metadata": metadata, **parameters})
        picture = image if isinstance(image, bytes) else _read(Path(image))
        if not 0 < len(picture) <= MAX_IMAGE_BYTES:
            rule = f"must have 1 to {MAX_IMAGE_BYTES} bytes; this has {len(picture)}"
            raise errors.InvalidRequest([Fault("image", rule, has_value=False)])
        return self.send(request, picture, on_event=on_event)

    def send(self, request: Request, picture: bytes | None = None, *, on_event: OnEvent | None = None) -> Generated:
        """Send a validated request; its class says which stage it is for.

        Raises:
            ServerUnavailable: the server cannot be reached or refuses the token.
            StageError: the request failed.
        """
        stage = Stage.T2I if isinstance(request, TextToImageRequest) else Stage.I2V
        body: dict[str, Any] = {"headers": {"Accept": NDJSON if on_event else MEDIA_TYPE[stage]}}
        parameters = request.model_dump_json(exclude_none=True)
        if picture is None:
            body["data"] = parameters.encode()
            body["headers"]["Content-Type"] = JSON
        else:
            body["files"] = {"image": ("image", picture), "parameters": ("parameters", parameters.encode(), JSON)}
        url = f"{self._urls[stage]}/predictions/{stage}"
        with self._connection.call(
            "POST", url, "inference", stream=True, timeout=(_CONNECT_SECONDS, self.timeout), **body
        ) as response:
            try:
                if response.status_code != 200:
                    raise failure(stage, error_body(response.status_code, response.content))
                return streamed(stage, response, on_event) if on_event else whole(stage, response)
            except requests.RequestException as error:
                if timed_out(error):
                    raise errors.Stalled(f"{stage}: no sign of life for {self.timeout:g} s") from None
                raise errors.BrokenAnswer(f"{stage}: the answer broke off: {reason(error)}") from None

    def readiness(self, stage: Stage) -> Readiness | None:
        """Workers of a stage, or None where the management API cannot be asked: it is out of reach, or there is no key.

        Raises:
            NotReady: the server does not have the stage's model.
        """
        base = self._management or next_port(self._urls[stage])
        try:
            with self._connection.call(
                "GET", f"{base}/models/{stage}", "management", timeout=_CONNECT_SECONDS
            ) as response:
                if response.status_code == 404:
                    raise errors.NotReady(f"{base} has no model {stage}")
                workers = [worker["status"] for worker in response.json()[0]["workers"]]
        except (errors.Unreachable, errors.Unauthorized, errors.Stalled, ValueError, LookupError, TypeError):
            return None
        return Readiness(stage, workers.count("READY"), len(workers))

    def describe(self, stage: Stage, timeout: float = _CONNECT_SECONDS) -> Description | None:
        """What a worker of a stage says of itself, or None where it cannot be asked or is busy for too long.

        The question waits in the stage's queue like any request, here for at most `timeout` seconds.
        """
        base = self._management or next_port(self._urls[stage])
        url = f"{base}/models/{stage}?customized=true"
        try:
            with self._connection.call("GET", url, "management", timeout=(_CONNECT_SECONDS, timeout)) as response:
                return Description.model_validate(response.json()[0]["customizedMetadata"])
        except (errors.CloudVidError, ValueError, LookupError, TypeError):
            return None

    def check_ready(self, *stages: Stage) -> None:
        """Return where every stage has a READY worker, or where the endpoints answer and workers cannot be counted.

        Raises:
            Unreachable: nothing answers at an endpoint's address.
            Unauthorized: the token is refused.
            NotReady: a stage has no READY worker.
        """
        for stage in stages or tuple(Stage):
            with self._connection.call(
                "GET", f"{self._urls[stage]}/ping", "inference", timeout=_CONNECT_SECONDS
            ) as response:
                if response.status_code != 200:
                    raise errors.Unhealthy(
                        f"{self._urls[stage]}/ping answers {response.status_code}: workers do not come up; "
                        "the server's log says why"
                    )
            readiness = self.readiness(stage)
            if readiness is not None and not readiness.ready:
                raise errors.NotReady(
                    f"{stage} has no worker that is ready, of {readiness.workers}; `cloudvid wait` waits until it has"
                )

    def is_healthy(self, stage: Stage) -> bool:
        """Whether the stage's server does not say itself that its workers stay down; True where it says nothing."""
        try:
            ping = f"{self._urls[stage]}/ping"
            with self._connection.call("GET", ping, "inference", timeout=_CONNECT_SECONDS) as response:
                return response.status_code != 500
        except errors.CloudVidError:
            return True

    def wait_until_ready(self, *stages: Stage, timeout: float = 600.0) -> None:
        """Wait until every stage has a READY worker.

        Raises:
            ServerUnavailable: not within `timeout` seconds; the last reason.
        """
        began = self._clock()
        unhealthy_since: float | None = None
        while True:
            try:
                return self.check_ready(*stages)
            except errors.ServerUnavailable as error:
                now = self._clock()
                # A key file may not be written yet; a token that is wrong stays wrong.
                gives_up = timeout
                if isinstance(error, errors.Unauthorized):
                    gives_up = min(timeout, _KEY_FILE_SECONDS if self._connection.credentials.key_file else 0.0)
                if now - began >= gives_up:
                    raise
                is_unhealthy = isinstance(error, errors.Unhealthy)
                unhealthy_since = (unhealthy_since or now) if is_unhealthy else None
                if unhealthy_since is not None and now - unhealthy_since >= _UNHEALTHY_SECONDS:
                    raise
            self._sleep(0.5)

    def _is_local(self) -> bool:
        urls = [*self._urls.values(), *([self._management] if self._management else [])]
        return all(urlsplit(url).hostname in _LOOPBACK for url in urls)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        rule = f"{path} cannot be read ({error.strerror})"
        raise errors.InvalidRequest([Fault("image", rule, has_value=False)]) from None


def _validated(model: type[Any], values: Mapping[str, Any]) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise errors.InvalidRequest(faults_of(error, model)) from None
