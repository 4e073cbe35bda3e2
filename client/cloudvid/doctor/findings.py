"""What a check looks at, and what it says."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from cloudvid.client import Client

Level = Literal["ok", "note", "problem"]
_COMMAND_SECONDS = 120.0
GIGABYTE = 10**9


class Finding(BaseModel):
    """One thing that was looked at."""

    model_config = ConfigDict(frozen=True)

    check: str
    """Name of the check."""
    level: Level
    found: str
    remedy: str = ""
    """What to do; empty where nothing is."""
    unavailable: bool = False
    """Whether this is why the server takes no requests."""


def run_command(command: Sequence[str]) -> tuple[int | None, str]:
    """Exit code and output of a program; None where it cannot be run or does not end."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", timeout=_COMMAND_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        return None, str(error)
    return done.returncode, done.stdout.strip()


def installed_version(distribution: str) -> str | None:
    """Version of a package of this Python, without importing it; None where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes of memory that programs can still take: the machine's, or what is left of a container's limit."""
    sizes = []
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                sizes.append(int(line.split()[1]) * 1024)
        group = root / "sys/fs/cgroup"
        sizes.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # no Linux, no limit
    return min(sizes, default=None)


@dataclass(frozen=True)
class Place:
    """The machine, and the folder that cloudvid was started in. Tests pass others."""

    client: Client
    output_dir: Path = Path("output")
    folder: Path = field(default_factory=Path.cwd)
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    python: tuple[int, ...] = tuple(sys.version_info[:3])
    run: Callable[[Sequence[str]], tuple[int | None, str]] = run_command
    which: Callable[[str], str | None] = shutil.which
    installed: Callable[[str], str | None] = installed_version
    memory: Callable[[], int | None] = available_memory
    free_disk: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free

    @property
    def serves(self) -> bool:
        """Whether a model server can run from this Python; if not, this is a client's machine."""
        return self.installed("torchserve") is not None

    @property
    def run_dir(self) -> Path:
        """Where `make start` would keep its server."""
        return self.folder / ".run"

    @property
    def hub_cache(self) -> Path:
        """Where the Hugging Face Hub's files are kept."""
        names = self.environment
        home = Path(names.get("HOME") or Path.home())
        cache = Path(names.get("HF_HOME") or Path(names.get("XDG_CACHE_HOME") or home / ".cache") / "huggingface")
        return Path(names.get("HF_HUB_CACHE") or cache / "hub").expanduser()

    def missing(self) -> Level:
        """How bad it is that something is missing that a server alone needs."""
        return "problem" if self.serves else "note"

    def python_says(self, code: str) -> tuple[int | None, str]:
        """What this Python, as a process of its own, prints."""
        return self.run([sys.executable, "-c", code])
