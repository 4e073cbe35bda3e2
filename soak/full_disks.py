"""F6: the disk is full, or files may not be as long as they are: small file systems and `ulimit -f`, of many sizes.

A batch ends with a clear error, and every request that was sent has its result on record. With room it goes on.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fake_torchserve import fake_torchserve
from folders import contents, no_half_file_has_a_final_name, scenes

from cloudvid.manifest import read_records
from soak.case import Case, check
from soak.commands import clean_environment, run_command
from soak.report import Report, Round
from soak.servers import until

_SCENES = 4
_PICTURE = 256  # pixels a side; of noise, that is 200 kB
_FULL = 5 * 2**19  # bytes; with it a file system has room for all
_LONG = 500_000  # bytes; more than the longest of its files
_LIMITED = (
    "import os, resource, sys; n = int(sys.argv[1]); "
    "resource.setrlimit(resource.RLIMIT_FSIZE, (n, n)); os.execv(sys.argv[2], sys.argv[2:])"
)
_CLEAR = ("cannot be written", "cannot be used", "has room for", "no file may be longer")


def _run(report: Report) -> None:
    scene_file = report.folder / "scenes.json"
    document = scenes(_SCENES, width=_PICTURE, height=_PICTURE)
    for each in document:
        each["i2v_params"]["num_frames"] = 2
    scene_file.write_text(json.dumps(document))
    obstacle = _no_tmpfs()
    if obstacle:
        report.note("small file systems", f"not run: {obstacle}")
    with fake_torchserve() as server:
        _client(server.url, scene_file, report.folder / "undisturbed")
    expected = contents(report.folder / "undisturbed")

    def work(each: Round) -> None:
        if each.number % 2 or obstacle:
            limit = each.draw.randrange(_LONG)
            limited = _Place(each.folder / "out", (sys.executable, "-c", _LIMITED, str(limit)))
            _batch(each, scene_file, limited, expected)
            each.report.count_of("ulimit -f")
        else:
            with _tmpfs(each.folder, each.draw.randrange(4096, _FULL)) as (folder, enlarge):
                _batch(each, scene_file, _Place(folder / "out", (), enlarge), expected)
            each.report.count_of("small file systems")

    report.spread(work, threads=2)


@dataclass(frozen=True)
class _Place:
    """Where a batch has little room."""

    folder: Path
    before: tuple[str, ...] = ()
    """What stands before the client's command."""
    enlarge: Callable[[], None] = lambda: None


def _batch(each: Round, scene_file: Path, place: _Place, expected: dict[str, bytes]) -> None:
    folder = place.folder
    with fake_torchserve(step_seconds=0.01) as server:
        done = _client(server.url, scene_file, folder, place.before)
        check("Traceback" not in done.stderr, done.stderr[-2000:])
        if done.returncode:
            check(any(words in done.stderr for words in _CLEAR), f"not clear: {done.stderr[-500:]}")
            each.report.count_of("refused" if server.posts.total() == 0 else "ended early")
        else:
            each.report.count_of("had room")
        check(done.returncode in (0, 1, 2), f"exit code {done.returncode}: {done.stderr[-500:]}")
        check(no_half_file_has_a_final_name(folder), "a half file has a final name")
        records, _ = read_records(folder) if folder.is_dir() else ({}, True)
        kept = sum((record.t2i is not None) + (record.i2v is not None) for record in records.values())
        check(
            kept == server.posts.total(),
            f"{server.posts.total()} requests were sent, {kept} results are on record: {done.stderr[-500:]}",
        )
        place.enlarge()
        again = _client(server.url, scene_file, folder)
        check(again.returncode == 0, f"with room, exit code {again.returncode}: {again.stderr[-500:]}")
        check(server.posts.total() == 2 * _SCENES, f"{server.posts.total()} requests in all")
    check(contents(folder) == expected, "not the files of an undisturbed batch")


def _client(url: str, scene_file: Path, folder: Path, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    environment = clean_environment() | {"PYTHONDONTWRITEBYTECODE": "1"}
    command = [*before, *run_command(url, scene_file, folder)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def _unshared() -> list[str]:
    own = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *own, "--mount", "--propagation", "private"]


def _no_tmpfs() -> str:
    """Why there can be no small file systems here; empty where there can."""
    attempt = [*_unshared(), "mount", "-t", "tmpfs", "-o", "size=4096", "none", "/tmp"]
    try:
        tried = subprocess.run(attempt, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        return str(error)
    return tried.stderr.strip() if tried.returncode else ""


@contextmanager
def _tmpfs(folder: Path, size: int) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A file system of so many bytes, seen through a process that alone has it; it ends with that process."""
    place = folder / "small"
    place.mkdir()
    script = (
        f'mount -t tmpfs -o size={size} none "$0" && : > "$0/.there" && read _ && '
        'mount -o remount,size=64m "$0" && : > "$0/.large" && read _'
    )
    waits, go_on = os.pipe()
    holder = subprocess.Popen([*_unshared(), "sh", "-c", script, str(place)], stdin=waits)
    seen = Path(f"/proc/{holder.pid}/root") / place.relative_to("/")

    def enlarge() -> None:
        os.write(go_on, b"\n")
        until((seen / ".large").exists, "the file system is larger")

    try:
        until((seen / ".there").exists, "the file system is there")
        yield seen, enlarge
    finally:
        holder.kill()
        holder.wait()
        os.close(waits)
        os.close(go_on)


CASE = Case(
    "F6",
    "the disk is full (small file systems) or files too long (ulimit -f), at sizes drawn",
    "clear error, no inference whose result cannot be stored",
    count=50,
    short=2,
    run=_run,
    unit="sizes",
)
