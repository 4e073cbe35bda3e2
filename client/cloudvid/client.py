"""`Client`: one call for a picture, one for a clip, against a running model server."""

import math
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import requests
from pydantic import ValidationError

from cloudvid.endpoints import errors
from cloudvid.endpoints.answers import Generated, OnEvent, error_body, failure, streamed, whole
from cloudvid.endpoints.connection import (
    CONNECT_SECONDS,
    DEFAULT_SERVER,
    Connection,
    address,
    is_local,
    next_port,
    plain_session,
    reason,
)
from cloudvid.endpoints.credentials import Credentials
from cloudvid.server.local import death_at, key_file_for, local_servers
from cloudvid.server.scale import scale
from cloudvid.server.server import Server
from cloudvid.server.state import StageStatus
from cloudvid_schema.faults import Fault, faults_of
from cloudvid_schema.protocol import (
    JOB_HEADER,
    JOB_ID,
    JOB_ID_RULE,
    JSON,
    MAX_IMAGE_BYTES,
    MEDIA_TYPE,
    NDJSON,
    REQUESTS,
    Progress,
    Request,
    Stage,
    Started,
)

_NONE_FOUND = "no server runs on this machine: `make start`, or name its address (`server`, CLOUDVID_SERVER)"


class Client:
    """Talks to the two endpoints and to the server behind them. It may be used as a context manager.

    Args:
        server: address of the model server; default: the one that `make start` runs from this folder, else the one that
            this user started last, else port 8080.
        t2i_url: address of the text-to-image endpoint's server, if it is another one.
        i2v_url: address of the image-to-video endpoint's server, if it is another one.
        management: address of the management API; default: one port above the server's.
        token: fixed token for the endpoints.
        key_file: TorchServe's `key_file.json`; default: that of the server found as above, if it is on this machine.
        keys_leave_host: whether the key file's keys are sent to the addresses given here that are not on this machine.
            They are sent to no other.
        ca: CA bundle used to verify the server's certificate (default: the public CAs).
        timeout: seconds without any data after which a request has failed.
        session: HTTP session; default: one that ignores proxies, netrc and redirects.
        sleep: waits.
        clock: monotonic seconds.

    Attributes:
        server: the state of the server: looking at it, waiting for it.
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
        keys_leave_host: bool = True,
        ca: str | Path | None = None,
        timeout: float = 3600.0,
        session: requests.Session | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        is_given = bool(server or (t2i_url and i2v_url))
        found = None if is_given else next(local_servers(), None)
        server = server or (found.url if found else DEFAULT_SERVER)
        urls = {Stage.T2I: address(t2i_url or server), Stage.I2V: address(i2v_url or server)}
        managed = {stage: address(management) if management else next_port(url) for stage, url in urls.items()}
        if key_file is None and token is None and is_local(*urls.values(), *managed.values()):
            key_file = key_file_for(urls[Stage.T2I])
        if token is not None and not (token.isascii() and token.isprintable()):
            rule = "contains characters that are not allowed in an HTTP header"
            raise errors.InvalidInput([Fault("token", rule, has_value=False)])
        # A token for the endpoints is sent to a management API only if its address was given explicitly.
        named = tuple(address(url) for url in (server, t2i_url, i2v_url, management) if url and keys_leave_host)
        credentials = Credentials(token, Path(key_file) if key_file else None, bool(management), named)
        none_found = "" if is_given or found else _NONE_FOUND
        why_absent = lambda url: death_at(url) or (none_found, ())  # noqa: E731
        self._connection = Connection(session or plain_session(ca), credentials, why_absent)
        chosen_by = "given" if is_given else none_found or str(found)
        self.server = Server(
            self._connection,
            urls,
            managed,
            sleep=sleep,
            clock=clock,
            chosen_by=chosen_by,
            guesses_management=management is None,
        )
        self.timeout = timeout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._connection.session.close()

    def text_to_image(
        self,
        prompt: str,
        *,
        negative_prompt: str | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        width: int | None = None,
        height: int | None = None,
        seed: int | None = None,
        metadata: dict[str, Any] | None = None,
        embed_recipe: bool | None = None,
        on_event: OnEvent | None = None,
        job: str | None = None,
    ) -> Generated:
        """A PNG picture of a prompt. Parameters that are not given have the defaults of `TextToImageParameters`.

        Args:
            prompt: what the picture shows.
            negative_prompt: what it should not show.
            num_inference_steps: denoising steps.
            guidance_scale: how closely the picture follows the prompt.
            width: pixels.
            height: pixels.
            seed: makes the result repeatable; default: drawn by the server.
            metadata: stored in the file.
            embed_recipe: whether the file carries its recipe and the metadata.
            on_event: called with every step; without it the answer comes in one piece.
            job: see `send`.

        Raises:
            InvalidRequest: a parameter breaks its rule; nothing was sent.
            ServerUnavailable: the server cannot be reached or refuses the token.
            StageError: the request failed.
        """
        given = {name: value for name, value in locals().items() if name not in ("self", "on_event", "job")}
        return self.send(_validated(Stage.T2I, given), on_event=on_event, job=job)

    def image_to_video(
        self,
        image: Generated | bytes | str | Path,
        *,
        width: int | None = None,
        height: int | None = None,
        fit: Literal["crop", "pad", "stretch"] | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        fps: int | None = None,
        motion_bucket_id: int | None = None,
        noise_aug_strength: float | None = None,
        decode_chunk_size: int | None = None,
        min_guidance_scale: float | None = None,
        max_guidance_scale: float | None = None,
        seed: int | None = None,
        metadata: dict[str, Any] | None = None,
        embed_recipe: bool | None = None,
        on_event: OnEvent | None = None,
        job: str | None = None,
    ) -> Generated:
        """An MP4 clip that begins with a picture. The defaults are those of `ImageToVideoParameters`.

        Args:
            image: a PNG, JPEG or WebP file, as bytes or a path; or what `text_to_image` made.
            width: pixels; default: the picture's.
            height: pixels; default: the picture's.
            fit: how a picture of another size fills the clip.
            num_frames: length of the clip.
            num_inference_steps: denoising steps.
            fps: frames per second.
            motion_bucket_id: how much moves.
            noise_aug_strength: noise added to the picture.
            decode_chunk_size: frames decoded at once.
            min_guidance_scale: guidance of the first frame.
            max_guidance_scale: guidance of the last frame.
            seed: makes the result repeatable; default: drawn by the server.
            metadata: stored in the file.
            embed_recipe: whether the file carries its recipe and the metadata.
            on_event: called with every step; without it the answer comes in one piece.
            job: see `send`.

        Raises:
            InvalidRequest: a parameter breaks its rule; nothing was sent.
            ServerUnavailable: the server cannot be reached or refuses the token.
            StageError: the request failed.
        """
        given = {name: value for name, value in locals().items() if name not in ("self", "image", "on_event", "job")}
        request = _validated(Stage.I2V, given)
        if isinstance(image, Generated):
            image = image.data
        picture = image if isinstance(image, bytes) else _read(Path(image))
        if not 0 < len(picture) <= MAX_IMAGE_BYTES:
            rule = f"must have 1 to {MAX_IMAGE_BYTES} bytes; this has {len(picture)}"
            raise errors.InvalidRequest([Fault("image", rule, has_value=False)])
        return self.send(request, picture, on_event=on_event, job=job)

    def send(
        self,
        request: Request,
        picture: bytes | None = None,
        *,
        on_event: OnEvent | None = None,
        job: str | None = None,
    ) -> Generated:
        """Send a validated request; its class decides the stage.

        Args:
            request: what to make.
            picture: of i2v: the file of the first frame.
            on_event: called with every step; without it the answer comes in one piece.
            job: an id by which it can be found and cancelled (`server.jobs`) while it waits and runs.

        Raises:
            ServerUnavailable: the server cannot be reached or refuses the token.
            StageError: the request failed.
        """
        stage = request.stage
        body: dict[str, Any] = {"headers": {"Accept": NDJSON if on_event else MEDIA_TYPE[stage]}}
        parameters = request.model_dump_json(exclude_none=True)
        if picture is None:
            body["data"] = parameters.encode()
            body["headers"]["Content-Type"] = JSON
        else:
            body["files"] = {"image": ("image", picture), "parameters": ("parameters", parameters.encode(), JSON)}
        if job:
            if not re.fullmatch(JOB_ID, job):
                raise errors.InvalidRequest([Fault("job", f"must be {JOB_ID_RULE}", job)])
            body["headers"][JOB_HEADER] = job
            self.server.jobs.announce(job, stage)
        url, timeout = f"{self.server.urls[stage]}/predictions/{stage}", (CONNECT_SECONDS, self.timeout)
        try:
            with self._connection.call("POST", url, "inference", stream=True, timeout=timeout, **body) as response:
                if response.status_code != 200:
                    raise failure(stage, error_body(response.status_code, response.content))
                if on_event is None:
                    return whole(stage, response)
                return streamed(stage, response, _in_steps(request.num_inference_steps, on_event))
        except (errors.Unreachable, requests.RequestException) as error:
            cause = error.__cause__ if isinstance(error, errors.Unreachable) else error
            # In a body, requests reports a read that timed out as a ConnectionError around urllib3's error.
            if isinstance(cause, requests.ReadTimeout) or "Read timed out" in str(cause):
                raise errors.Stalled(f"{stage}: no data for {self.timeout:g} s") from None
            if isinstance(error, requests.RequestException):
                raise errors.BrokenAnswer(f"{stage}: the answer broke off: {reason(error)}") from None
            raise

    def status(self, stage: Stage, patience: float = 1.0) -> StageStatus:
        """The state of a stage, with a worker's description of itself; see `Server.status`."""
        return self.server.status(stage, patience)

    def check_ready(self, *stages: Stage) -> None:
        """Return if every stage has a ready worker; see `Server.check_ready`."""
        self.server.check_ready(*stages)

    def wait_until_ready(
        self,
        *stages: Stage,
        timeout: float = 600.0,
        on_wait: Callable[[errors.ServerUnavailable], None] = lambda error: None,
    ) -> None:
        """Wait until every stage has a ready worker; see `Server.wait_until_ready`."""
        self.server.wait_until_ready(*stages, timeout=timeout, on_wait=on_wait)

    def scale(
        self,
        stage: Stage,
        workers: int,
        *,
        max_workers: int | None = None,
        timeout: float = 600.0,
        on_status: Callable[[StageStatus], None] = lambda seen: None,
    ) -> StageStatus:
        """Give a stage so many workers and wait until all of them are ready; see `cloudvid.server.scale.scale`."""
        return scale(self.server, stage, workers, max_workers=max_workers, timeout=timeout, on_status=on_status)


def _in_steps(steps: int, on_event: OnEvent) -> OnEvent:
    """Counts denoising in the steps that were asked for: a scheduler may call the model more often (PNDM: once)."""

    def pass_on(event: Started | Progress) -> None:
        if isinstance(event, Progress) and event.phase == "denoise":
            step = math.ceil(event.step * steps / max(1, event.steps))
            event = event.model_copy(update={"step": step, "steps": steps})
        on_event(event)

    return pass_on


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        rule = f"{path} cannot be read ({error.strerror})"
        raise errors.InvalidRequest([Fault("image", rule, has_value=False)]) from None


def _validated(stage: Stage, given: Mapping[str, Any]) -> Request:
    try:
        return REQUESTS[stage].model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise errors.InvalidRequest(faults_of(error, REQUESTS[stage])) from None
