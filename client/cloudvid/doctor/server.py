"""Checks of the server that cloudvid would use: ports, key, endpoints, workers."""

import json
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

from cloudvid.connection import is_local
from cloudvid.doctor.findings import Finding, Place
from cloudvid.errors import CloudVidError, NotReady, ServerUnavailable, Unauthorized, Unreachable
from cloudvid.local_server import last_error, server_process, worker_log
from cloudvid.management import Readiness
from cloudvid.stage_status import StageStatus
from cloudvid_schema import __version__
from cloudvid_schema.protocol import Stage

_PORTS = 6
_SOON = timedelta(hours=1)
_START = "start it (`make start`), or name its address with --server or CLOUDVID_SERVER"


def ports(place: Place) -> Iterator[Finding]:
    """The ports of a server on this machine: free, or held by that server."""
    for url in sorted(set(place.client.urls.values())):
        if not is_local(url):
            continue
        first = urlsplit(url).port or 80
        wanted = range(first, first + _PORTS)
        taken = [port for port in wanted if not _is_free(port)]
        span = f"ports {wanted[0]} to {wanted[-1]}"
        server = server_process(place.run_dir)
        if not taken:
            yield Finding(check="ports", level="ok", found=f"{span} are free")
        elif server and server[1] == first:
            yield Finding(check="ports", level="ok", found=f"{span} are this folder's server's, process {server[0]}")
        elif first in taken and _is_server(place, url):
            yield Finding(check="ports", level="ok", found=f"{span}: a server answers on {first}")
        else:
            found = f"another program holds port {', '.join(map(str, taken))}"
            remedy = "end it, or choose other ports: `make start PORT=9000`"
            yield Finding(check="ports", level="problem", found=found, remedy=remedy)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _is_server(place: Place, url: str) -> bool:
    stage = next(stage for stage, address in place.client.urls.items() if address == url)
    try:
        return place.client.ping(stage) in (200, 500)
    except Unauthorized:
        return True
    except CloudVidError:
        return False


def key(place: Place) -> Iterator[Finding]:
    """What cloudvid would identify itself with."""
    path = place.client.key_file
    if path is None:
        has_token = place.client.has_token
        remedy = "start the server in this folder, or name its key with --key-file or --token"
        yield Finding(
            check="key",
            level="ok" if has_token else "note",
            found="a token was given" if has_token else f"no token, and no key file in {place.run_dir}",
            remedy="" if has_token else remedy,
        )
        return
    try:
        status = path.stat()
        document = json.loads(path.read_text())
        expires = {name: _time(document[name]["expiration time"]) for name in ("inference", "management")}
    except OSError as error:
        remedy = "the server writes it when it starts; another user's file only that user can read"
        found = f"{path} cannot be read ({error.strerror})"
        yield Finding(check="key", level="problem", found=found, remedy=remedy, unavailable=True)
        return
    except (ValueError, LookupError, TypeError):
        remedy = "name TorchServe's key_file.json, or start the server anew"
        found = f"{path} is no key file of TorchServe's"
        yield Finding(check="key", level="problem", found=found, remedy=remedy, unavailable=True)
        return
    if status.st_mode & 0o077:
        found = f"{path} can be read by others (mode {status.st_mode & 0o777:04o})"
        remedy = f"`chmod 600 {path}`, then start the server anew"
        yield Finding(check="key", level="problem", found=found, remedy=remedy)
    now, first = datetime.now(UTC), min(expires.values())
    if first <= now:
        found = f"the keys in {path} have expired"
        remedy = "start the server anew: `make stop`, then `make start`"
        yield Finding(check="key", level="problem", found=found, remedy=remedy, unavailable=True)
    elif first - now < _SOON:
        minutes = (first - now).seconds // 60
        found = f"the keys in {path} expire in {minutes} minutes"
        yield Finding(check="key", level="note", found=found, remedy="start the server anew before a long batch")
    elif not status.st_mode & 0o077:
        yield Finding(check="key", level="ok", found=f"{path}, for the owner alone, until {first:%Y-%m-%d %H:%M} UTC")


def _time(text: str) -> datetime:
    """TorchServe writes nanoseconds, which are more digits than datetime takes."""
    whole, _, fraction = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{whole}.{fraction[:6]}+00:00" if fraction else f"{whole}+00:00")


def endpoints(place: Place) -> Iterator[Finding]:
    """Whether each stage's endpoint answers, takes the token, and has a worker that is ready."""
    said = set[str]()
    for stage in Stage:
        for finding in _endpoint(place, stage):
            # Both stages may be one server's: what is wrong with it is said once.
            if finding.found not in said:
                said.add(finding.found)
                yield finding


def _endpoint(place: Place, stage: Stage) -> Iterator[Finding]:
    url = place.client.urls[stage]
    try:
        code = place.client.ping(stage)
    except Unauthorized as error:
        remedy = "name this server's key: --key-file for one on this machine, --token for another"
        yield Finding(check="server", level="problem", found=str(error), remedy=remedy, unavailable=True)
        return
    except ServerUnavailable as error:
        yield Finding(check="server", level="problem", found=str(error), remedy=_START, unavailable=True)
        return
    if code not in (200, 500):
        found, remedy = f"{url}/ping answers {code}", "look whether this is the address of a CloudVid server"
        yield Finding(check="server", level="problem", found=found, remedy=remedy, unavailable=True)
        return
    yield Finding(check="server", level="ok", found=f"{url} answers and takes the key")
    try:
        seen = place.client.status(stage)
    except NotReady as error:
        remedy = f"name the server of {stage} with --{stage}-url"
        yield Finding(check="endpoints", level="problem", found=str(error), remedy=remedy, unavailable=True)
        return
    except (Unreachable, Unauthorized, CloudVidError) as error:
        if (behind := place.client.proxy_readiness(stage)) is not None:
            yield _as_a_proxy_counts(behind)
            return
        found = f"{stage}: whether a worker is ready cannot be seen from here: {error}"
        remedy = "name the management API and its key (--management, --key-file)"
        yield Finding(check="endpoints", level="note", found=found, remedy=remedy)
        return
    yield from _workers(place, stage, seen)


def _as_a_proxy_counts(seen: Readiness) -> Finding:
    found = f"{seen.stage}: {seen.ready} of {seen.workers} workers ready, as the proxy before them counts"
    if seen.ready:
        return Finding(check="endpoints", level="ok", found=found)
    remedy = "`cloudvid wait` waits until one is" if seen.workers else f"`cloudvid scale {seen.stage} 1`, on its host"
    return Finding(check="endpoints", level="problem", found=found, remedy=remedy, unavailable=True)


def _workers(place: Place, stage: Stage, seen: StageStatus) -> Iterator[Finding]:
    count = f"{stage}: {seen.ready} of {len(seen.workers)} worker{'s' if len(seen.workers) != 1 else ''} ready"
    reason = last_error(worker_log(place.client.key_file), stage) if seen.ready < len(seen.workers) else None
    why = f" (the log's last error: {reason})" if reason else ""
    if seen.ready:
        model = f", {seen.description.model}" if seen.description else ""
        yield Finding(check="endpoints", level="ok", found=f"{count}, {seen.queue} requests wait{model}")
    elif not seen.workers:
        remedy = f"`cloudvid scale {stage} 1` starts one"
        yield Finding(
            check="endpoints", level="problem", found=f"{stage} has no workers", remedy=remedy, unavailable=True
        )
    else:
        remedy = "mend what the server's log says" if seen.unhealthy or reason else "`cloudvid wait` waits until it is"
        yield Finding(check="endpoints", level="problem", found=count + why, remedy=remedy, unavailable=True)
    if seen.unhealthy:
        found = f"{seen.server} has given a worker up that did not come up"
        remedy = f"mend what its log says{why}, then `cloudvid scale STAGE N` replaces it"
        yield Finding(check="endpoints", level="problem", found=found, remedy=remedy)
    if seen.version not in ("", __version__):
        found = f"{stage}: the server's archive is version {seen.version}, this cloudvid is {__version__}"
        yield Finding(check="endpoints", level="note", found=found, remedy="use the same version of both")
