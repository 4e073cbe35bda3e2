"""`Client`: one call for a picture, one for a clip, against a running model server."""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import requests
from pydantic import ValidationError
from requests.adapters import HTTPAdapter

from cloudvid import errors
from cloudvid.answers import Generated, OnEvent, error_body, failure, streamed, whole
from cloudvid.credentials import RUN_KEY_FILE, Api, Credentials
from cloudvid_schema.faults import faults_of
from cloudvid_schema.protocol import (
    JSON,
    MEDIA_TYPE,
    NDJSON,
    ImageToVideoRequest,
    Request,
    Stage,
    TextToImageRequest,
)

DEFAULT_SERVER = "http://127.0.0.1:8080"
_CONNECT_SECONDS = 10.0
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
        self._urls = {Stage.T2I: _address(t2i_url or server), Stage.I2V: _address(i2v_url or server)}
        self._management = _address(management) if management else None
        if key_file is None and token is None and RUN_KEY_FILE.is_file() and self._is_local():
            key_file = RUN_KEY_FILE
        self._credentials = Credentials(token, Path(key_file) if key_file else None)
        self._timeout = (_CONNECT_SECONDS, timeout)
        self._session = session or _plain_session()
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
            OutputError: the picture's file cannot be read.
            ServerUnavailable: the server cannot be reached or refuses the token.
            StageError: the request failed.
        """
        request = _validated(ImageToVideoRequest, {"metadata": metadata, **parameters})
        return self.send(request, image if isinstance(image, bytes) else _read(Path(image)), on_event=on_event)

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
        with self._call("POST", url, "inference", stream=True, timeout=self._timeout, **body) as response:
            try:
                if response.status_code != 200:
                    raise failure(stage, error_body(response.status_code, response.content))
                return streamed(stage, response, on_event) if on_event else whole(stage, response)
            except requests.RequestException as error:
                raise errors.BrokenAnswer(f"{stage}: the answer broke off: {_reason(error)}") from None

    def readiness(self, stage: Stage) -> Readiness | None:
        """Workers of a stage, or None where the management API cannot be asked.

        Raises:
            NotReady: the server does not have the stage's model.
        """
        base = self._management or _next_port(self._urls[stage])
        try:
            with self._call("GET", f"{base}/models/{stage}", "management", timeout=_CONNECT_SECONDS) as response:
                if response.status_code == 404:
                    raise errors.NotReady(f"{base} has no model {stage}")
                workers = [worker["status"] for worker in response.json()[0]["workers"]]
        except (errors.Unreachable, errors.Unauthorized, ValueError, LookupError, TypeError):
            return None
        return Readiness(stage, workers.count("READY"), len(workers))

    def check_ready(self, *stages: Stage) -> None:
        """Return where every stage has a READY worker.

        Raises:
            Unreachable: nothing answers at an endpoint's address.
            Unauthorized: the token is refused.
            NotReady: a stage has no READY worker.
        """
        for stage in stages or tuple(Stage):
            with self._call("GET", f"{self._urls[stage]}/ping", "inference", timeout=_CONNECT_SECONDS) as response:
                if response.status_code != 200:
                    raise errors.NotReady(f"{self._urls[stage]}/ping answers {response.status_code}")
            readiness = self.readiness(stage)
            if readiness is not None and not readiness.ready:
                raise errors.NotReady(
                    f"{stage} has no worker that is ready, of {readiness.workers}; `cloudvid wait` waits until it has"
                )

    def wait_until_ready(self, *stages: Stage, timeout: float = 600.0) -> None:
        """Wait until every stage has a READY worker.

        Raises:
            ServerUnavailable: not within `timeout` seconds; the last reason.
        """
        deadline = self._clock() + timeout
        while True:
            try:
                return self.check_ready(*stages)
            except errors.ServerUnavailable:
                if self._clock() >= deadline:
                    raise
            self._sleep(0.5)

    def _is_local(self) -> bool:
        return all(urlsplit(url).hostname in _LOOPBACK for url in self._urls.values())

    def _call(self, method: str, url: str, api: Api, **arguments: Any) -> requests.Response:
        """One HTTP exchange; with a key that was refused, once more if the key file has a new one."""
        key = self._credentials.key(api)
        while True:
            headers = {**arguments.pop("headers", {}), **({"Authorization": f"Bearer {key}"} if key else {})}
            try:
                response = self._session.request(method, url, headers=headers, allow_redirects=False, **arguments)
            except requests.RequestException as error:
                raise errors.Unreachable(f"nothing answers at {url}: {_reason(error)}") from None
            if response.status_code not in (400, 401, 403):
                return response
            body = error_body(response.status_code, response.content)
            if response.status_code == 400 and body.type != "InvalidKeyException":
                return response
            renewed = self._credentials.key(api)
            if renewed == key:
                raise errors.Unauthorized(f"{url} refuses {self._credentials}: {body.message}")
            key, arguments["headers"] = renewed, headers


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise errors.OutputError(f"{path} cannot be read: {error.strerror}") from None


def _plain_session() -> requests.Session:
    session = requests.Session()
    session.trust_env = False  # a ~/.netrc would replace the token, and a proxy would see it
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(pool_maxsize=64, max_retries=0))
    return session


def _address(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise errors.Unreachable(f"{url!r} is no address of a server; one looks like {DEFAULT_SERVER}")
    return url.rstrip("/")


def _next_port(url: str) -> str:
    """The management API's usual place: the port above the endpoints'."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return urlunsplit((parts.scheme, f"{host}:{(parts.port or 8080) + 1}", "", "", ""))


def _reason(error: requests.RequestException) -> str:
    """What went wrong, without the object addresses and nested classes that urllib3 prints."""
    text = str(error)
    found = re.search(r"(?:\[Errno -?\d+\] |: )([A-Z][a-z][^'\"()\[\]{}<>]*)['\")]*$", text)
    return found[1].strip() if found else type(error).__name__


def _validated(model: type[Any], values: Mapping[str, Any]) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise errors.InvalidRequest(faults_of(error, model)) from None
