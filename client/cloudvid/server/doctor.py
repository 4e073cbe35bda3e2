"""What is wrong with this machine, this folder and the server, each finding with its remedy.

A check is a function from a `Place` to findings; `CHECKS` lists them. If the folder is a checkout, its own checks of
the machine and the models (`deploy/doctor.py`) run in a process of their own.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import TypeAdapter

from cloudvid.endpoints.answers import told
from cloudvid.endpoints.connection import is_local
from cloudvid.endpoints.errors import CloudVidError, NotReady, ServerUnavailable, Unauthorized
from cloudvid.server.local import last_error, local_servers, worker_log
from cloudvid.server.server import Server
from cloudvid.server.state import StageStatus
from cloudvid_schema import __version__
from cloudvid_schema.key_file import read_keys
from cloudvid_schema.ports import PORTS
from cloudvid_schema.processes import taken_ports
from cloudvid_schema.protocol import Stage

GIGABYTE = 10**9
_PYTHON = (3, 11)
_SOON = timedelta(hours=1)
_SECONDS = 300.0
_START = "start it (`make start`), or give its address with --server or CLOUDVID_SERVER"
_GIVE_KEY = "give this server's key: --key-file if it is on this machine, --token otherwise"


@dataclass(frozen=True)
class Finding:
    """The result of a check."""

    check: str
    """Name of the check."""
    level: Literal["ok", "note", "problem"]
    """A note is about what may become a problem."""
    found: str
    remedy: str = ""
    """What to do; empty if nothing."""
    unavailable: bool = False
    """Whether this is why the server takes no requests."""


@dataclass(frozen=True)
class Place:
    """What is examined: the server, and the folder that cloudvid was started in."""

    server: Server
    output_dir: Path = Path("output")
    folder: Path = field(default_factory=Path.cwd)


def python(_: Place) -> Iterator[Finding]:
    """The interpreter that runs cloudvid."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info >= _PYTHON:
        yield Finding("python", "ok", f"Python {version}")
    else:
        found = f"Python {version}: CloudVid needs Python 3.11 or newer"
        yield Finding("python", "problem", found, "install a newer one")


def checkout(place: Place) -> Iterator[Finding]:
    """The machine and the models, if this folder is a checkout that can serve."""
    if not (place.folder / "deploy/doctor.py").is_file():
        return
    modules = os.pathsep.join(str(place.folder / name) for name in ("", "client", "handlers"))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "deploy.doctor"],
            cwd=place.folder,
            env=os.environ | {"PYTHONPATH": modules},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        code, text = done.returncode, done.stdout or done.stderr
    except (OSError, subprocess.SubprocessError) as error:
        code, text = None, str(error)
    try:
        yield from TypeAdapter(list[Finding]).validate_json(text)
    except ValueError:
        last = text.strip().splitlines()[-1:] or ["no output"]
        found = f"the checkout's own checks ended with {code}: {last[0]}"
        yield Finding("checkout", "problem", found, "`make clean`, then `make setup`")


def disk(place: Place) -> Iterator[Finding]:
    """Space for outputs."""
    output = place.folder / place.output_dir
    parent = nearest(output)
    if parent.is_dir() and os.access(parent, os.W_OK | os.X_OK):
        yield free_disk(output, "outputs", GIGABYTE, "a picture or clip takes about 1 MB")
    else:
        found = f"{output} cannot be written to: {parent} is {'not writable' if parent.is_dir() else 'not a folder'}"
        yield Finding("disk", "problem", found, "choose another folder with --output-dir")


def nearest(path: Path) -> Path:
    """The path, or the nearest parent that exists."""
    return next(place for place in (path, *path.parents) if place.exists())


def free_disk(folder: Path, what: str, enough: int, needs: str) -> Finding:
    """Whether the disk of a folder, which need not exist yet, has so many bytes free."""
    free = shutil.disk_usage(nearest(folder)).free
    found = f"{free / GIGABYTE:.1f} GB are free for {what} in {folder}"
    if free >= enough:
        return Finding("disk", "ok", found)
    return Finding("disk", "problem" if free < GIGABYTE / 10 else "note", found, f"free some space: {needs}")


def address(place: Place) -> Iterator[Finding]:
    """Which server is used, and why."""
    urls = " and ".join(dict.fromkeys(place.server.urls.values()))
    yield Finding("address", "ok", f"{urls}: {place.server.chosen_by}")


def ports(place: Place) -> Iterator[Finding]:
    """The ports of a server on this machine: free, or used by that server."""
    for url, stage in sorted({url: stage for stage, url in place.server.urls.items()}.items()):
        if not is_local(url):
            continue
        first = urlsplit(url).port or 80
        wanted = range(first, first + PORTS)
        taken = taken_ports(wanted)
        span = f"ports {wanted[0]} to {wanted[-1]}"
        owner = next(
            (server for server in local_servers(place.folder) if server.port == first and server.is_alive), None
        )
        if not taken:
            yield Finding("ports", "ok", f"{span} are free")
        elif owner:
            yield Finding("ports", "ok", f"{span} belong to {owner}")
        elif first in taken and _is_server(place.server, stage):
            yield Finding("ports", "ok", f"{span}: a server answers on {first}")
        else:
            found = f"another program uses port {', '.join(map(str, taken))}"
            yield Finding("ports", "problem", found, "stop it, or choose other ports: `make start PORT=9000`")


def _is_server(server: Server, stage: Stage) -> bool:
    try:
        return server.ping(stage) in (200, 500)
    except Unauthorized:
        return True
    except CloudVidError:
        return False


def key(place: Place) -> Iterator[Finding]:
    """The credentials that cloudvid would send."""
    path = place.server.key_file
    if path is None:
        if place.server.connection.credentials.token is not None:
            yield Finding("key", "ok", "a token was given")
        else:
            remedy = "start the server in this folder, or give its key with --key-file or --token"
            yield Finding("key", "note", f"no token, and no key file in {place.folder / '.run'}", remedy)
        return
    restart = "restart the server: `make stop`, then `make start`"
    try:
        mode = path.stat().st_mode & 0o777
        expires = read_keys(path).expires
    except OSError as error:
        remedy = "the server writes it at its start; only its user can read it"
        yield Finding("key", "problem", f"{path} cannot be read ({error.strerror})", remedy, unavailable=True)
        return
    except ValueError:
        remedy = "use TorchServe's key_file.json, or restart the server"
        yield Finding("key", "problem", f"{path} is not a key file of TorchServe", remedy, unavailable=True)
        return
    left = expires - datetime.now(UTC)
    if mode & 0o077:
        found = f"{path} can be read by others (mode {mode:04o})"
        yield Finding("key", "problem", found, f"`chmod 600 {path}`, then {restart}")
    if left <= timedelta():
        yield Finding("key", "problem", f"the keys in {path} have expired", restart, unavailable=True)
    elif left < _SOON:
        found = f"the keys in {path} expire in {left.seconds // 60} minutes"
        yield Finding("key", "note", found, "restart the server before a long batch")
    elif not mode & 0o077:
        yield Finding("key", "ok", f"{path}, readable by its owner only, valid until {expires:%Y-%m-%d %H:%M} UTC")


def endpoints(place: Place) -> Iterator[Finding]:
    """Whether each stage's endpoint answers, accepts the token, and has a ready worker."""
    reported = set[str]()
    for stage in Stage:
        for finding in _endpoint(place, stage):
            # Both stages may have the same server: report its faults once.
            if finding.found not in reported:
                reported.add(finding.found)
                yield finding


def _endpoint(place: Place, stage: Stage) -> Iterator[Finding]:
    server = place.server
    url = server.urls[stage]
    try:
        ping = server.answer_to_ping(stage)
    except ServerUnavailable as error:
        remedy = _GIVE_KEY if isinstance(error, Unauthorized) else _START
        found = "\n".join([str(error), *error.log])
        yield Finding("server", "problem", found, remedy, unavailable=True)
        return
    if ping.code not in (200, 500):
        remedy = "check that this is the address of a CloudVid server"
        yield Finding("server", "problem", f"{url}/ping answers {told(ping)}", remedy, unavailable=True)
        return
    yield Finding("server", "ok", f"{url} answers and accepts the key")
    try:
        seen = server.look(stage)
    except NotReady as error:
        remedy = f"give the address of the server of {stage} with --{stage}-url"
        yield Finding("endpoints", "problem", str(error), remedy, unavailable=True)
        return
    if seen.counted_by == "nothing":
        remedy = "give the management API's address and key (--management, --key-file)"
        yield Finding("endpoints", "note", f"{stage}: its workers cannot be counted from here", remedy)
        return
    if seen.counted_by == "management":
        seen = server.status(stage)
    yield from _workers(place, stage, seen)


def _workers(place: Place, stage: Stage, seen: StageStatus) -> Iterator[Finding]:
    by_proxy = seen.counted_by == "proxy"
    count = f"{stage}: {seen.ready} of {len(seen.workers)} worker{'s' if len(seen.workers) != 1 else ''} ready"
    count += ", as counted by the proxy" if by_proxy else ""
    reason = last_error(worker_log(place.server.key_file), stage) if seen.ready < len(seen.workers) else None
    why = f" (last error in the log: {reason})" if reason else ""
    if seen.ready:
        queue = "" if by_proxy else f", {seen.queue} requests waiting"
        model = f", {seen.description.model}" if seen.description else ""
        yield Finding("endpoints", "ok", f"{count}{queue}{model}")
    elif not seen.workers:
        remedy = f"start one with `cloudvid scale {stage} 1`" + (" on its host" if by_proxy else "")
        yield Finding("endpoints", "problem", f"{stage} has no workers", remedy, unavailable=True)
    else:
        remedy = "fix what the server's log reports" if seen.unhealthy or reason else "`cloudvid wait` waits for one"
        yield Finding("endpoints", "problem", count + why, remedy, unavailable=True)
    if seen.unhealthy:
        found = f"{seen.server} has given up a worker that failed to start"
        remedy = f"fix what its log reports{why}, then replace it with `cloudvid scale STAGE N`"
        yield Finding("endpoints", "problem", found, remedy)
    if (seen := place.server.with_restarts(seen)).restarts:
        remedy = "the log of the workers says why; without an error there, see `dmesg`: it was killed"
        yield Finding("endpoints", "note", f"{stage}: {seen.restarts_text}", remedy)
    if seen.version not in ("", __version__):
        found = f"{stage}: the server's archive has version {seen.version}, this cloudvid has {__version__}"
        yield Finding("endpoints", "note", found, "use the same version of both")


CHECKS = (python, address, ports, key, endpoints, disk, checkout)
"""The server's come first: the notes on a machine without a GPU are the same every time."""


def examine(checks: Iterable[Callable[..., Iterator[Finding]]], *arguments: Place) -> Iterator[Finding]:
    """The findings of all checks, as they come. A check that fails is a finding too and does not stop the others."""
    for check in checks:
        try:
            yield from check(*arguments)
        except Exception as error:  # finding unforeseen faults is what this is for
            found = f"this check failed ({type(error).__name__}: {error})"
            yield Finding(check.__name__, "problem", found, "please report this")
