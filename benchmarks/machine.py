"""The machine that measures: processor and versions; no names, no paths."""

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "deploy"))

from java import java_home

_PACKAGES = ("torch", "diffusers", "transformers", "torchserve", "litserve", "fastapi", "uvicorn")


def describe() -> dict[str, Any]:
    """Processor, cores, memory, load and versions."""
    said = subprocess.run([java_home() / "bin/java", "-version"], capture_output=True, text=True, check=True).stderr
    java = re.search(r'version "([^"]+)"', said)
    versions = {"python": platform.python_version(), "java": java[1] if java else "unknown"}
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "versions": versions | {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def _cpu() -> str:
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1].strip() if found else platform.machine()
