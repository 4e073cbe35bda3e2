"""The machine that measures: no names, no paths."""

import contextlib
import os
import platform
import re
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from support import ROOT


def describe(*packages: str) -> dict[str, Any]:
    """Commit, date, processor, cores, memory, load, and versions of Python and these packages."""
    cpu = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu[1].strip() if cpu else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in packages},
    }


def describe_gpu() -> dict[str, Any]:
    """The GPU, its memory, CUDA and driver; just `cpu` where torch sees none."""
    import pynvml
    import torch

    if not torch.cuda.is_available():
        return {"device": "cpu"}
    pynvml.nvmlInit()
    properties = torch.cuda.get_device_properties(0)
    device = {"device": properties.name, "bytes": properties.total_memory, "cuda": torch.version.cuda}
    return device | {"driver": pynvml.nvmlSystemGetDriverVersion()}


def _commit() -> str:
    """With a plus if a file was changed since, other than results and what is written from them."""

    def git(*arguments: str) -> str:
        with contextlib.suppress(FileNotFoundError):
            done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
            return done.stdout.strip()
        return ""

    but = (":!soak/results", ":!benchmarks/results", ":!docs")
    is_changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", *but)
    return (git("rev-parse", "--short=10", "HEAD") or "unknown") + ("+" if is_changed else "")
