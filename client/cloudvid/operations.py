"""What a client asks and tells a server about itself: whether it is ready, what its workers do, how many there are."""

from collections.abc import Callable, Mapping
from pathlib import Path

from cloudvid import errors
from cloudvid.connection import Connection
from cloudvid.local_server import last_error, worker_log
from cloudvid.management import CONNECT_SECONDS, Management, Readiness
from cloudvid.scaling import Scaling
from cloudvid.stage_status import StageStatus
from cloudvid_schema.protocol import Description, Stage

_KEY_FILE_SECONDS = 15.0
_UNHEALTHY_SECONDS = 20.0  # a worker that died once is back in less; one that cannot load never is


class Operations:
    """The part of `Client` that makes nothing.

    Args:
        connection: how requests are sent.
        urls: address of each stage's endpoint.
        management: address of each stage's management API.
        sleep: how to wait.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        connection: Connection,
        urls: Mapping[Stage, str],
        management: Mapping[Stage, str],
        *,
        sleep: Callable[[float], None],
        clock: Callable[[], float],
    ) -> None:
        self._connection, self._urls, self._sleep, self._clock = connection, urls, sleep, clock
        self._management = Management(connection, management)

    @property
    def urls(self) -> Mapping[Stage, str]:
        """Address of each stage's endpoint."""
        return self._urls

    @property
    def has_token(self) -> bool:
        """Whether a fixed token was given."""
        return self._connection.credentials.token is not None

    @property
    def key_file(self) -> Path | None:
        """TorchServe's file of keys, where one is used."""
        return self._connection.credentials.key_file

    def readiness(self, stage: Stage) -> Readiness | None:
        """Workers of a stage, or None where the management API cannot be asked: it is out of reach, or there is no key.

        Raises:
            NotReady: the server does not have the stage's model.
        """
        return self._management.readiness(stage)

    def proxy_readiness(self, stage: Stage) -> Readiness | None:
        """Workers of a stage as `/ready` of the proxy before it counts them, of one host where several stand behind;
        None where no proxy tells.
        """
        url = f"{self._urls[stage]}/ready"
        try:
            with self._connection.call(
                "GET", url, "inference", params={"stage": stage}, timeout=CONNECT_SECONDS
            ) as response:
                workers = response.json()["stages"][stage]["workers"]
                return Readiness(stage, int(workers["READY"]), sum(map(int, workers.values())))
        except (errors.CloudVidError, ValueError, LookupError, TypeError, AttributeError):
            return None

    def workers_seen(self, stage: Stage) -> Readiness | None:
        """Workers of a stage as the management API counts them, or else a proxy; None where neither can be asked.

        Raises:
            NotReady: the server does not have the stage's model.
        """
        return self.readiness(stage) or self.proxy_readiness(stage)

    def describe(
        self, stage: Stage, timeout: float = CONNECT_SECONDS, readiness: Readiness | None = None
    ) -> Description | None:
        """What a worker of a stage says of itself, or None where it cannot be asked or is busy for too long.

        The question waits in the stage's queue like any request, here for at most `timeout` seconds.

        Args:
            stage: which.
            timeout: seconds.
            readiness: as just seen; default: looked at first, for without a worker that is ready it would wait for one.
        """
        return self._management.describe(stage, timeout, readiness)

    def status(self, stage: Stage, patience: float = 1.0) -> StageStatus:
        """A stage's workers and queue at this moment, and what a worker said last of itself.

        Args:
            stage: which.
            patience: seconds to wait for a worker that is busy.

        Raises:
            ServerUnavailable: the management API cannot be asked.
        """
        seen = self._management.status(stage, patience)
        return seen.model_copy(update={"unhealthy": self.says_unhealthy(stage)})

    def scale(
        self,
        stage: Stage,
        workers: int,
        *,
        max_workers: int | None = None,
        timeout: float = 600.0,
        on_status: Callable[[StageStatus], None] = lambda seen: None,
    ) -> StageStatus:
        """Give a stage so many workers; return once all of them are ready.

        Args:
            stage: which.
            workers: how many; 0 stops the stage.
            max_workers: the most that it may be scaled to from now on; default: what it is.
            timeout: seconds after which to stop waiting.
            on_status: told how it goes.

        Raises:
            InvalidRequest: more than the stage may have; nothing was changed.
            NotScaled: they do not come up; the message says why and what to do.
            ServerUnavailable: the management API cannot be asked.
        """
        scaling = Scaling(
            self._management,
            lambda: self.says_unhealthy(stage),
            key_file=self.key_file,
            timeout=timeout,
            on_status=on_status,
            sleep=self._sleep,
            clock=self._clock,
        )
        return scaling.to(stage, workers, max_workers)

    def check_ready(self, *stages: Stage) -> None:
        """Return where every stage has a READY worker, or where the endpoints answer and workers cannot be counted,
        neither by the management API nor by a proxy.

        Raises:
            Unreachable: nothing answers at an endpoint's address.
            Unauthorized: the token is refused.
            NotReady: a stage has no READY worker.
        """
        for stage in stages or tuple(Stage):
            status = self.ping(stage)
            readiness = self.workers_seen(stage)
            if readiness is not None and readiness.ready:
                continue  # whatever befell another worker
            if status == 500:
                reason = last_error(worker_log(self.key_file), stage) or "the server's log says why"
                raise errors.Unhealthy(f"{self._urls[stage]}/ping answers 500: workers do not come up: {reason}")
            if status != 200:
                raise errors.Unreachable(f"{self._urls[stage]}/ping answers {status}")
            if readiness is not None:
                if readiness.workers and (said := last_error(worker_log(self.key_file), stage)):
                    remedy = f"the log's last error: {said}"
                elif readiness.workers:
                    remedy = "`cloudvid wait` waits until it has"
                else:
                    remedy = f"`cloudvid scale {stage} 1` gives it one"
                raise errors.NotReady(f"{stage} has no worker that is ready, of {readiness.workers}; {remedy}")

    def is_healthy(self, stage: Stage) -> bool:
        """Whether the stage has a worker that is ready, or its server does not say that its workers stay down; True
        where neither can be asked.
        """
        if not self.says_unhealthy(stage):
            return True
        try:
            readiness = self.workers_seen(stage)
        except errors.NotReady:
            return False
        return readiness is not None and readiness.ready > 0

    def says_unhealthy(self, stage: Stage) -> bool:
        """Whether the stage's server says that a worker, of whichever stage, has been given up for good."""
        try:
            return self.ping(stage) == 500
        except errors.CloudVidError:
            return False

    def ping(self, stage: Stage) -> int:
        """The HTTP status of `/ping` at a stage's server: 200 also where workers still load, or where there are none;
        500 once a worker of any stage was given up for good.

        Raises:
            ServerUnavailable: nothing answers, or the token is refused.
        """
        url = f"{self._urls[stage]}/ping"
        # The stage is for a proxy before two servers. Where the path alone decides, one stage answers for both.
        for query in ({"stage": stage}, {}):
            with self._connection.call("GET", url, "inference", params=query, timeout=CONNECT_SECONDS) as response:
                status = response.status_code
            if status != 404:
                break
        return status

    def wait_until_ready(
        self,
        *stages: Stage,
        timeout: float = 600.0,
        on_wait: Callable[[errors.ServerUnavailable], None] = lambda error: None,
    ) -> None:
        """Wait until every stage has a READY worker.

        Args:
            stages: which; default: both.
            timeout: seconds after which to stop waiting.
            on_wait: told each time why it goes on waiting.

        Raises:
            ServerUnavailable: not within `timeout` seconds; the last reason. Untrusted at once.
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
                if isinstance(error, errors.Untrusted):
                    raise
                on_wait(error)
            self._sleep(0.5)
