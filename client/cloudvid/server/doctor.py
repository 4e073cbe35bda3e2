"""What is wrong with this machine, this folder and the server, each finding with its remedy.

A check is a function from a `Place` to findings; `CHECKS` lists them. If the folder is a checkout, its own checks of
the machine and the models (`deploy/doctor.py`) run in a process of their own.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, TypeAdapter

from cloudvid.endpoints.connection import is_local
from cloudvid.endpoints.errors import CloudVidError, NotReady, ServerUnavailable, Unauthorized
from cloudvid.server.local import last_error, server_process, worker_log
from cloudvid.server.server import Server
from cloudvid.server.state import StageStatus
from cloudvid_schema import __version__
from cloudvid_schema.key_file import read_keys
from cloudvid_schema.processes import taken_ports
from cloudvid_schema.protocol import Stage

Level = Literal["ok", "note", "problem"]
GIGABYTE = 10**9
_PYTHON = (3, 11)
_PORTS = 6
_SOON = timedelta(hours=1)
_SECONDS = 300.0
_START = "start it (`make start`), or give its address with --server or CLOUDVID_SERVER"


class Finding(BaseModel):
    """The result of a check."""

    model_config = ConfigDict(frozen=True)

    check: str
    """Name of the check."""
    level: Level
    found: str
    remedy: str = ""
    """What to do; empty if nothing."""
    unavailable: bool = False
    """Whether this is why the server takes no requests."""

    @classmethod
    def ok(cls, check: str, found: str) -> Self:
        """Nothing is wrong."""
        return cls(check=check, level="ok", found=found)

    @classmethod
    def note(cls, check: str, found: str, remedy: str) -> Self:
        """Something that may become a problem."""
        return cls(check=check, level="note", found=found, remedy=remedy)

    @classmethod
    def problem(cls, check: str, found: str, remedy: str, *, unavailable: bool = False) -> Self:
        """Something is wrong."""
        return cls(check=check, level="problem", found=found, remedy=remedy, unavailable=unavailable)


def run_command(command: Sequence[str], folder: Path) -> tuple[int | None, str]:
    """Exit code and output of a program of a checkout; the code is None if it cannot be run or does not end."""
    modules = os.pathsep.join(str(folder / name) for name in ("", "client", "handlers"))
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": modules},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return None, str(error)
    return done.returncode, done.stdout or done.stderr


@dataclass(frozen=True)
class Place:
    """The machine, the server, and the folder that cloudvid was started in. Tests pass others."""

    server: Server
    output_dir: Path = Path("output")
    folder: Path = field(default_factory=Path.cwd)
    python: tuple[int, ...] = tuple(sys.version_info[:3])
    run: Callable[[Sequence[str], Path], tuple[int | None, str]] = run_command
    free_disk: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free


def python(place: Place) -> Iterator[Finding]:
    """The interpreter that runs cloudvid."""
    version = ".".join(map(str, place.python))
    if place.python[:2] >= _PYTHON:
        yield Finding.ok("python", f"Python {version}")
    else:
        found = f"Python {version}: CloudVid needs Python 3.11 or newer"
        yield Finding.problem("python", found, "install a newer one")


def checkout(place: Place) -> Iterator[Finding]:
    """The machine and the models, if this folder is a checkout that can serve."""
    if not (place.folder / "deploy/doctor.py").is_file():
        return
    code, text = place.run([sys.executable, "-m", "deploy.doctor"], place.folder)
    try:
        yield from TypeAdapter(list[Finding]).validate_json(text)
    except ValueError:
        last = text.strip().splitlines()[-1:] or ["no output"]
        found = f"the checkout's own checks ended with {code}: {last[0]}"
        yield Finding.problem("checkout", found, "`make clean`, then `make setup`")


def disk(place: Place) -> Iterator[Finding]:
    """Space for outputs."""
    output = place.folder / place.output_dir
    parent = next(folder for folder in (output, *output.parents) if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        found = f"{output} cannot be written to: {parent} is {'not writable' if parent.is_dir() else 'not a folder'}"
        yield Finding.problem("disk", found, "choose another folder with --output-dir")
        return
    needs = "a picture or clip takes about 1 MB"
    yield disk_space(place.free_disk(parent), f"for outputs in {output}", GIGABYTE, needs)


def disk_space(free: int, what: str, enough: int, needs: str) -> Finding:
    """A finding about free space in bytes."""
    found = f"{free / GIGABYTE:.1f} GB are free {what}"
    if free >= enough:
        return Finding.ok("disk", found)
    kind = Finding.problem if free < GIGABYTE / 10 else Finding.note
    return kind("disk", found, f"free some space: {needs}")


def ports(place: Place) -> Iterator[Finding]:
    """The ports of a server on this machine: free, or used by that server."""
    for url in sorted(set(place.server.urls.values())):
        if not is_local(url):
            continue
        first = urlsplit(url).port or 80
        wanted = range(first, first + _PORTS)
        taken = taken_ports(wanted)
        span = f"ports {wanted[0]} to {wanted[-1]}"
        server = server_process(place.folder / ".run")
        if not taken:
            yield Finding.ok("ports", f"{span} are free")
        elif server and server[1] == first:
            yield Finding.ok("ports", f"{span} belong to this folder's server, process {server[0]}")
        elif first in taken and _is_server(place, url):
            yield Finding.ok("ports", f"{span}: a server answers on {first}")
        else:
            found = f"another program uses port {', '.join(map(str, taken))}"
            yield Finding.problem("ports", found, "stop it, or choose other ports: `make start PORT=9000`")


def _is_server(place: Place, url: str) -> bool:
    stage = next(stage for stage, address in place.server.urls.items() if address == url)
    try:
        return place.server.ping(stage) in (200, 500)
    except Unauthorized:
        return True
    except CloudVidError:
        return False


def key(place: Place) -> Iterator[Finding]:
    """The credentials that cloudvid would send."""
    path = place.server.key_file
    if path is None:
        if place.server.has_token:
            yield Finding.ok("key", "a token was given")
        else:
            remedy = "start the server in this folder, or give its key with --key-file or --token"
            yield Finding.note("key", f"no token, and no key file in {place.folder / '.run'}", remedy)
        return
    restart = "restart the server: `make stop`, then `make start`"
    try:
        mode = path.stat().st_mode & 0o777
        expires = read_keys(path).expires
    except OSError as error:
        remedy = "the server writes it at its start; only its user can read it"
        yield Finding.problem("key", f"{path} cannot be read ({error.strerror})", remedy, unavailable=True)
        return
    except ValueError:
        remedy = "use TorchServe's key_file.json, or restart the server"
        yield Finding.problem("key", f"{path} is not a key file of TorchServe", remedy, unavailable=True)
        return
    left = expires - datetime.now(UTC)
    if mode & 0o077:
        found = f"{path} can be read by others (mode {mode:04o})"
        yield Finding.problem("key", found, f"`chmod 600 {path}`, then {restart}")
    if left <= timedelta():
        yield Finding.problem("key", f"the keys in {path} have expired", restart, unavailable=True)
    elif left < _SOON:
        found = f"the keys in {path} expire in {left.seconds // 60} minutes"
        yield Finding.note("key", found, "restart the server before a long batch")
    elif not mode & 0o077:
        yield Finding.ok("key", f"{path}, readable by its owner only, valid until {expires:%Y-%m-%d %H:%M} UTC")


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
        ping = server.ping(stage)
    except Unauthorized as error:
        remedy = "give this server's key: --key-file if it is on this machine, --token otherwise"
        yield Finding.problem("server", str(error), remedy, unavailable=True)
        return
    except ServerUnavailable as error:
        yield Finding.problem("server", str(error), _START, unavailable=True)
        return
    if ping not in (200, 500):
        remedy = "check that this is the address of a CloudVid server"
        yield Finding.problem("server", f"{url}/ping answers {ping}", remedy, unavailable=True)
        return
    yield Finding.ok("server", f"{url} answers and accepts the key")
    try:
        seen = server.look(stage)
    except NotReady as error:
        remedy = f"give the address of the server of {stage} with --{stage}-url"
        yield Finding.problem("endpoints", str(error), remedy, unavailable=True)
        return
    if seen.counted_by == "nothing":
        remedy = "give the management API's address and key (--management, --key-file)"
        yield Finding.note("endpoints", f"{stage}: its workers cannot be counted from here", remedy)
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
        yield Finding.ok("endpoints", f"{count}{queue}{model}")
    elif not seen.workers:
        remedy = f"start one with `cloudvid scale {stage} 1`" + (" on its host" if by_proxy else "")
        yield Finding.problem("endpoints", f"{stage} has no workers", remedy, unavailable=True)
    else:
        remedy = "fix what the server's log reports" if seen.unhealthy or reason else "`cloudvid wait` waits for one"
        yield Finding.problem("endpoints", count + why, remedy, unavailable=True)
    if seen.unhealthy:
        found = f"{seen.server} has given up a worker that failed to start"
        remedy = f"fix what its log reports{why}, then replace it with `cloudvid scale STAGE N`"
        yield Finding.problem("endpoints", found, remedy)
    if seen.version not in ("", __version__):
        found = f"{stage}: the server's archive has version {seen.version}, this cloudvid has {__version__}"
        yield Finding.note("endpoints", found, "use the same version of both")


CHECKS = (python, checkout, disk, ports, key, endpoints)


def examine(checks: Iterable[Callable[..., Iterator[Finding]]], *arguments: Place) -> Iterator[Finding]:
    """The findings of all checks, as they come. A check that fails is a finding too and does not stop the others."""
    for check in checks:
        try:
            yield from check(*arguments)
        except Exception as error:  # finding unforeseen faults is what this is for
            found = f"this check failed ({type(error).__name__}: {error})"
            yield Finding.problem(check.__name__, found, "please report this")
