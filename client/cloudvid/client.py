"""`Client`: one call for a picture, one for a clip, against a running model server."""

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import requests
from pydantic import ValidationError

from cloudvid import errors
from cloudvid.answers import Generated, OnEvent, error_body, failure, streamed, whole
from cloudvid.connection import (
    DEFAULT_SERVER,
    Connection,
    address,
    is_local,
    next_port,
    plain_session,
    reason,
    timed_out,
)
from cloudvid.credentials import Credentials
from cloudvid.local_server import RUN_KEY_FILE, local_address
from cloudvid.management import CONNECT_SECONDS
from cloudvid.operations import Operations
from cloudvid_schema.faults import Fault, faults_of
from cloudvid_schema.protocol import (
    JSON,
    MAX_IMAGE_BYTES,
    MEDIA_TYPE,
    NDJSON,
    ImageToVideoRequest,
    Request,
    Stage,
    TextToImageRequest,
)


class Client(Operations):
    """Talks to the two endpoints, and to their server about itself.

    Args:
        server: address of the model server; default: the one that `make start` runs from this folder, else port 8080.
        t2i_url: address of the text-to-image endpoint's server, where it is another one.
        i2v_url: likewise for image to video.
        management: address of the management API; default: the port above the server's.
        token: fixed token for the endpoints.
        key_file: TorchServe's `key_file.json`; default: `.run/key_file.json`, for a server on this machine.
        ca: file of the certificates that vouch for a server's own, where the public ones do not.
        timeout: seconds without a sign of life after which a request has failed.
        session: the HTTP session to use; default: one that ignores proxies, netrc and redirects.
        sleep: how to wait.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        server: str | None = None,
        *,
        t2i_url: str | None = None,
        i2v_url: str | None = None,
        management: str | None = None,
        token: str | None = None,
        key_file: str | Path | None = None,
        ca: str | Path | None = None,
        timeout: float = 3600.0,
        session: requests.Session | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        server = server or local_address() or DEFAULT_SERVER
        urls = {Stage.T2I: address(t2i_url or server), Stage.I2V: address(i2v_url or server)}
        asked = {stage: address(management) if management else next_port(url) for stage, url in urls.items()}
        if key_file is None and token is None and is_local(*urls.values(), *asked.values()):
            with contextlib.suppress(PermissionError):  # another user's .run
                key_file = RUN_KEY_FILE if RUN_KEY_FILE.is_file() else None
        if token is not None and not (token.isascii() and token.isprintable()):
            raise errors.Unauthorized("the token has characters that no HTTP header can carry")
        # A token for the endpoints goes to the management API only where its address was given, not guessed.
        credentials = Credentials(token, Path(key_file) if key_file else None, bool(management))
        super().__init__(Connection(session or plain_session(ca), credentials), urls, asked, sleep=sleep, clock=clock)
        self.timeout = timeout
        """Seconds without a sign of life after which a request has failed."""

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
            "POST", url, "inference", stream=True, timeout=(CONNECT_SECONDS, self.timeout), **body
        ) as response:
            try:
                if response.status_code != 200:
                    raise failure(stage, error_body(response.status_code, response.content))
                return streamed(stage, response, on_event) if on_event else whole(stage, response)
            except requests.RequestException as error:
                if timed_out(error):
                    raise errors.Stalled(f"{stage}: no sign of life for {self.timeout:g} s") from None
                raise errors.BrokenAnswer(f"{stage}: the answer broke off: {reason(error)}") from None


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
