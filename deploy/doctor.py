"""Checks of this checkout and the machine as a model server: `python -m deploy.doctor` prints findings as JSON.

`cloudvid doctor` runs it in a checkout, with `client` and `handlers` on the module path, and adds its findings to its
own.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from cloudvid.server.doctor import GIGABYTE, Finding, Level, disk_space, examine
from cloudvid_schema.protocol import Stage
from deploy import archives, java
from deploy.archives import ArchiveError
from deploy.torchserve import ROOT

_REAL_MEMORY = 8 * GIGABYTE  # the default models take 2.6 and 4.5 GB in half precision, twice as much on a CPU
_REAL_WEIGHTS = 10 * GIGABYTE
_REINSTALL = "`make clean`, then `make setup`"


def java_runtime() -> Iterator[Finding]:
    """The Java runtime that will run TorchServe."""
    passed_over = []
    for runtime in java.found():
        if runtime.is_usable:
            found = f"Java {runtime.version} from {runtime.source}: {runtime.home}"
            yield Finding(check="java", level="ok", found=found)
            break
        state = f"is {runtime.version}" if runtime.version else "does not run"
        passed_over.append(f"the Java from {runtime.source}, {runtime.home}, {state}")
    else:
        found = "; ".join(passed_over) or "there is no Java, which TorchServe needs"
        remedy = f"`make setup` installs Java {java.REQUIRED} or newer"
        yield Finding(check="java", level="problem", found=found, remedy=remedy)
        return
    if passed_over:
        remedy = "unset or correct it, so that it is clear which Java runs"
        yield Finding(check="java", level="note", found="; ".join(passed_over), remedy=remedy)


def torch_and_gpu() -> Iterator[Finding]:
    """torch, the GPUs that it sees, and the NVIDIA driver."""
    try:
        import torch

        gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        version, built = torch.__version__, torch.version.cuda
    except Exception as error:  # a broken installation can fail in any way
        found = f"torch does not work: {type(error).__name__}: {error}"
        yield Finding(check="torch", level="problem", found=found, remedy=_REINSTALL)
        return
    driver = list(_driver())
    has_gpu = driver[0].level == "ok"
    if gpus:
        names = ", ".join(f"{gpu.name} with {gpu.total_memory / GIGABYTE:.0f} GB" for gpu in gpus)
        yield Finding(check="torch", level="ok", found=f"torch {version}, CUDA {built}: {names}")
    elif not has_gpu:
        found, remedy = f"torch {version} sees no CUDA GPU", "use PROFILE=demo; the real models need a GPU"
        yield Finding(check="torch", level="note", found=found, remedy=remedy)
    elif built is None:
        found, remedy = (
            f"torch {version} is built without CUDA, but there is a GPU",
            f"install a CUDA build: {_REINSTALL}",
        )
        yield Finding(check="torch", level="problem", found=found, remedy=remedy)
    else:
        found = f"torch {version} sees no CUDA GPU, but there is one"
        remedy = f"update the NVIDIA driver to one that runs CUDA {built}, and check CUDA_VISIBLE_DEVICES"
        yield Finding(check="torch", level="problem", found=found, remedy=remedy)
    yield from driver


def _driver() -> Iterator[Finding]:
    if (program := shutil.which("nvidia-smi")) is None:
        remedy = "nothing, unless there is an NVIDIA GPU: then install its driver"
        yield Finding(check="driver", level="note", found="there is no NVIDIA driver (nvidia-smi)", remedy=remedy)
        return
    query = "--query-gpu=index,name,driver_version,memory.used,memory.total"
    done = subprocess.run([program, query, "--format=csv,noheader"], capture_output=True, text=True, check=False)
    rows = [line.split(", ") for line in done.stdout.splitlines()] if done.returncode == 0 else []
    gpus = [f"GPU {row[0]}: {row[1]}, driver {row[2]}, {row[3]} of {row[4]} in use" for row in rows if len(row) == 5]
    if gpus:
        yield Finding(check="driver", level="ok", found="; ".join(gpus))
    else:
        remedy = "reinstall the driver, or start the container with its GPUs (`--gpus all`)"
        yield Finding(check="driver", level="problem", found="nvidia-smi sees no GPU", remedy=remedy)


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes of memory that are available: the machine's, or what is left of a container's limit; None if unknown."""
    sizes = []
    try:
        if match := re.search(r"^MemAvailable:\s+(\d+)", (root / "proc/meminfo").read_text(), re.MULTILINE):
            sizes.append(int(match[1]) * 1024)
        group = root / "sys/fs/cgroup"
        sizes.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # not Linux, or no limit
    return min(sizes, default=None)


def memory(available: Callable[[], int | None] = available_memory) -> Iterator[Finding]:
    """Available memory."""
    if (size := available()) is None:
        return
    found = f"{size / GIGABYTE:.1f} GB of memory are available"
    level: Level = "ok"
    remedy = ""
    if size < GIGABYTE / 2:
        level, remedy = "problem", "close other programs: a worker without memory is killed"
    elif size < _REAL_MEMORY:
        level = "note"
        remedy = "enough for the demo models; the real ones take 3 and 5 GB while loading, twice as much on a CPU"
    yield Finding(check="memory", level=level, found=found, remedy=remedy)


def hub_cache() -> Path:
    """Folder of the Hugging Face Hub's files."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = Path(os.environ.get("HF_HOME") or home / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or cache / "hub").expanduser()


def disk() -> Iterator[Finding]:
    """Space for weights."""
    cache = hub_cache()
    parent = next(folder for folder in (cache, *cache.parents) if folder.exists())
    needs = "the real models take 8 GB; HF_HOME chooses another place"
    yield disk_space(shutil.disk_usage(parent).free, f"for weights in {cache}", _REAL_WEIGHTS, needs)


def ffmpeg() -> Iterator[Finding]:
    """The encoder of clips: the program in the package imageio-ffmpeg."""
    try:
        import imageio_ffmpeg

        program = imageio_ffmpeg.get_ffmpeg_exe()
        done = subprocess.run([program, "-version"], capture_output=True, text=True, check=True)
    except (ImportError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        remedy = f"reinstall it ({_REINSTALL}), or set IMAGEIO_FFMPEG_EXE to another one"
        found = f"ffmpeg, which encodes the clips, does not run: {error}"
        yield Finding(check="ffmpeg", level="problem", found=found, remedy=remedy)
        return
    version = done.stdout.splitlines()[0].partition(" Copyright")[0]
    yield Finding(check="ffmpeg", level="ok", found=f"{version}: {program}")


def model_archives(root: Path = ROOT) -> Iterator[Finding]:
    """The model archives, and whether their contents match this checkout."""
    for stage in Stage:
        path = root / "model_store" / f"{stage}.mar"
        name = path.relative_to(root)
        if not path.is_file():
            remedy = "`make archives` builds it (`make start` does too)"
            yield Finding(check="archives", level="note", found=f"{name} does not exist", remedy=remedy)
            continue
        try:
            changed = _outdated(path, root, stage)
        except (OSError, zipfile.BadZipFile, ValueError, LookupError, TypeError):
            remedy = "delete it, then `make archives`"
            yield Finding(
                check="archives", level="problem", found=f"{name} is not an archive of {stage}", remedy=remedy
            )
            continue
        if changed:
            remedy = "`make archives` builds it again (`make start` does too)"
            found = f"{name} has another {changed} than this folder"
            yield Finding(check="archives", level="note", found=found, remedy=remedy)
            continue
        try:
            archives.check(stage, path.parent)
        except ArchiveError as error:
            yield Finding(check="archives", level="problem", found=str(error), remedy="no server starts with it")
            continue
        yield Finding(check="archives", level="ok", found=f"{name} is up to date")


def _outdated(archive: Path, root: Path, stage: Stage) -> str:
    """The first file of an archive that differs from the one in this checkout; empty if there is none.

    Raises:
        BadZipFile, ValueError, LookupError, TypeError: it is not a complete archive of this stage.
    """
    with zipfile.ZipFile(archive) as packed:
        manifest = json.loads(packed.read("MAR-INF/MANIFEST.json"))
        if manifest["model"]["modelName"] != stage or packed.testzip():
            raise ValueError(archive)
        names = set(packed.namelist())
        for folder in ("client", "handlers"):
            files = [*(root / folder).glob("cloudvid_*/**/*.py"), *(root / folder).glob(f"{stage}_handler.py")]
            for file in sorted([*files, *(root / folder).glob("stage_handler.py")]):
                name = file.relative_to(root / folder).as_posix()
                if name not in names or packed.read(name) != file.read_bytes():
                    return name
        return "" if packed.read(f"{stage}.yaml") == (root / f"handlers/{stage}.yaml").read_bytes() else f"{stage}.yaml"


def weights(root: Path = ROOT) -> Iterator[Finding]:
    """The models that the settings name: whether they are here and complete."""
    import yaml

    from cloudvid_stages.digests import check_list
    from cloudvid_stages.settings import SettingsError, read_settings
    from cloudvid_stages.weights import SETTINGS, find

    for stage in Stage:
        section = yaml.safe_load((root / f"handlers/{stage}.yaml").read_text())["handler"]
        try:
            checkpoint = find(read_settings(SETTINGS[stage], stage, section))
        except SettingsError as error:
            remedy = "`make weights` downloads the real models; PROFILE=demo needs none"
            yield Finding(check="weights", level="note", found=f"{stage}: {error}", remedy=remedy)
            continue
        try:
            checkpoint.check(stage)
            _check_whole(checkpoint.path)
            check_list(checkpoint.path, checkpoint.identity)
        except SettingsError as error:
            yield Finding(check="weights", level="problem", found=f"{stage}: {error}", remedy="`make weights`")
            continue
        size = sum(file.stat().st_size for file in checkpoint.path.rglob("*.safetensors"))
        found = f"{stage}: {checkpoint.identity}, {size / GIGABYTE:.2f} GB in {checkpoint.path}"
        yield Finding(check="weights", level="ok", found=found)


def _check_whole(folder: Path) -> None:
    """Return if every safetensors file has as many bytes as its header promises.

    Raises:
        SettingsError: one is cut or damaged.
    """
    from safetensors import SafetensorError, safe_open

    from cloudvid_stages.settings import SettingsError

    for file in sorted(folder.rglob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise SettingsError(f"{file.relative_to(folder)} is cut or damaged: {error}") from None


CHECKS = (java_runtime, torch_and_gpu, memory, disk, ffmpeg, model_archives, weights)


def main() -> int:
    """Print the findings."""
    try:
        metadata.version("torchserve")
        findings = list(examine(CHECKS))
    except metadata.PackageNotFoundError:
        found = "torchserve is not installed in this Python: this checkout cannot serve"
        remedy = "`make setup`, if this machine is to serve"
        findings = [Finding(check="setup", level="note", found=found, remedy=remedy)]
    print(json.dumps([finding.model_dump() for finding in findings]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
