"""`cloudvid` as a user runs it, and its tables read back."""

import os
import subprocess
import sys

from support import ROOT, forked

SECONDS = 240
"""After which a command hangs."""


def clean_environment():
    """This process's environment without what belongs to a developer's own server."""
    return {name: value for name, value in os.environ.items() if not name.startswith("CLOUDVID_")}


def cloudvid(*arguments, cwd, environment=None):
    """Its exit code and output."""
    return forked.run("cloudvid.cli:main", *arguments, cwd=cwd, environment=clean_environment() | (environment or {}))


def command(*arguments: object) -> list[str]:
    """The same as a process that Python starts, slower and with nothing imported before."""
    return [sys.executable, "-m", "cloudvid.cli", *map(str, arguments)]


def environment(**others: str) -> dict[str, str]:
    """Of such a process: its client is this tree's, and its bytecode takes no place on a disk."""
    return clean_environment() | {"PYTHONPATH": str(ROOT / "client"), "PYTHONDONTWRITEBYTECODE": "1"} | others


def run(command: list[str], **others: str) -> subprocess.CompletedProcess[str]:
    """Its exit code and output, in which a carriage return stays one."""
    done = subprocess.run(command, env=environment(**others), capture_output=True, timeout=SECONDS, check=False)
    texts = [text.decode(errors="surrogateescape") for text in (done.stdout, done.stderr)]
    return subprocess.CompletedProcess(command, done.returncode, *texts)


def rows(text):
    """The table's rows by stage, each by heading."""
    first, *others = text.splitlines()
    starts = [first.index(heading) for heading in first.split()]
    ends = [*starts[1:], None]
    cells = [[line[start:end].strip() for start, end in zip(starts, ends, strict=True)] for line in others]
    return {row[0]: dict(zip(first.split(), row, strict=True)) for row in cells}
