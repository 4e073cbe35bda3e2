"""Checks of this checkout and the machine as a model server: `python -m deploy.doctor` prints findings as JSON.

`cloudvid doctor` runs it in a checkout, with `client` and `handlers` on the module path, and adds its findings to its
own.
"""

import contextlib
import json
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from cloudvid.server.doctor import GIGABYTE, Finding, examine, free_disk
from cloudvid_schema.protocol import Stage
from deploy import ROOT, DeployError, archives, java, profiles

_REAL_MEMORY = 8 * GIGABYTE  # the default models take 2.6 and 4.5 GB in half precision, twice as much on a CPU
_REAL_WEIGHTS = 10 * GIGABYTE
_REINSTALL = "`make clean`, then `make setup`"


def java_runtime() -> Iterator[Finding]:
    """The Java runtime that will run TorchServe."""
    passed_over: list[str] = []
    for runtime in java.found():
        if runtime.is_usable:
            yield Finding("java", "ok", f"Java {runtime.version} from {runtime.source}: {runtime.home}")
            if passed_over:
                remedy = "unset or correct it, so that it is clear which Java runs"
                yield Finding("java", "note", "; ".join(passed_over), remedy)
            return
        state = f"is {runtime.version}" if runtime.version else "does not run"
        passed_over.append(f"the Java from {runtime.source}, {runtime.home}, {state}")
    found = "; ".join(passed_over) or "there is no Java, which TorchServe needs"
    yield Finding("java", "problem", found, f"`make setup` installs Java {java.REQUIRED} or newer")


def torch_and_gpu() -> Iterator[Finding]:
    """torch, the GPUs that it sees, and the NVIDIA driver."""
    try:
        import torch

        gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        version, built = torch.__version__, torch.version.cuda
    except Exception as error:  # a broken installation can fail in any way
        yield Finding("torch", "problem", f"torch does not work: {type(error).__name__}: {error}", _REINSTALL)
        return
    driver = _driver()
    unseen = f"torch {version} sees no CUDA GPU"
    if gpus:
        names = ", ".join(f"{gpu.name} with {gpu.total_memory / GIGABYTE:.0f} GB" for gpu in gpus)
        yield Finding("torch", "ok", f"torch {version}, CUDA {built}: {names}")
    elif driver.level != "ok":
        yield Finding("torch", "note", unseen, "use PROFILE=demo; the real models need a GPU")
    elif built is None:
        found = f"torch {version} is built without CUDA, but there is a GPU"
        yield Finding("torch", "problem", found, f"install a CUDA build: {_REINSTALL}")
    else:
        remedy = f"update the NVIDIA driver to one that runs CUDA {built}, and check CUDA_VISIBLE_DEVICES"
        yield Finding("torch", "problem", f"{unseen}, but there is one", remedy)
    yield driver


def _driver() -> Finding:
    if (program := shutil.which("nvidia-smi")) is None:
        remedy = "nothing, unless there is an NVIDIA GPU: then install its driver"
        return Finding("driver", "note", "there is no NVIDIA driver (nvidia-smi)", remedy)
    query = "--query-gpu=index,name,driver_version,memory.used,memory.total"
    done = subprocess.run([program, query, "--format=csv,noheader"], capture_output=True, text=True, check=False)
    rows = [line.split(", ") for line in done.stdout.splitlines()] if done.returncode == 0 else []
    gpus = [f"GPU {row[0]}: {row[1]}, driver {row[2]}, {row[3]} of {row[4]} in use" for row in rows if len(row) == 5]
    if gpus:
        return Finding("driver", "ok", "; ".join(gpus))
    remedy = "reinstall the driver, or start the container with its GPUs (`--gpus all`)"
    return Finding("driver", "problem", "nvidia-smi sees no GPU", remedy)


def memory(root: Path = Path("/")) -> Iterator[Finding]:
    """Available memory: the machine's, or what is left of a container's limit."""
    import psutil

    size = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # there is no limit
        group = root / "sys/fs/cgroup"
        size = min(size, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    found = f"{size / GIGABYTE:.1f} GB of memory are available"
    if size < GIGABYTE / 2:
        yield Finding("memory", "problem", found, "close other programs: a worker without memory is killed")
    elif size < _REAL_MEMORY:
        remedy = "enough for the demo models; the real ones take 3 and 5 GB while loading, twice as much on a CPU"
        yield Finding("memory", "note", found, remedy)
    else:
        yield Finding("memory", "ok", found)


def disk() -> Iterator[Finding]:
    """Space for weights, in the cache of the Hugging Face Hub."""
    from huggingface_hub.constants import HF_HUB_CACHE

    needs = "the real models take 8 GB; HF_HOME chooses another place"
    yield free_disk(Path(HF_HUB_CACHE), "weights", _REAL_WEIGHTS, needs)


def ffmpeg() -> Iterator[Finding]:
    """The encoder of clips: the program in the package imageio-ffmpeg."""
    remedy = f"reinstall it ({_REINSTALL}), or set IMAGEIO_FFMPEG_EXE to another one"
    try:
        import imageio_ffmpeg

        program = imageio_ffmpeg.get_ffmpeg_exe()
        done = subprocess.run([program, "-version"], capture_output=True, text=True, check=True)
        encoders = subprocess.run([program, "-encoders"], capture_output=True, text=True, check=True).stdout
    except (ImportError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        yield Finding("ffmpeg", "problem", f"ffmpeg, which encodes the clips, does not run: {error}", remedy)
        return
    version = done.stdout.splitlines()[0].partition(" Copyright")[0]
    if "libx264" in encoders:
        yield Finding("ffmpeg", "ok", f"{version}: {program}")
    else:
        yield Finding("ffmpeg", "problem", f"{version} has no encoder libx264, which clips need: {program}", remedy)


def model_archives(root: Path = ROOT) -> Iterator[Finding]:
    """The model archives, and whether their contents match this checkout."""
    builds = "`make archives` builds it{} (`make start` does too)"
    for stage in Stage:
        path = root / f"model_store/{stage}.mar"
        name = path.relative_to(root)
        try:
            if changed := _outdated(path, root, stage):
                found = f"{name} has another {changed} than this folder"
                yield Finding("archives", "note", found, builds.format(" again"))
            else:
                archives.check(stage, path.parent)
                yield Finding("archives", "ok", f"{name} is up to date")
        except FileNotFoundError:
            yield Finding("archives", "note", f"{name} does not exist", builds.format(""))
        except DeployError as error:
            yield Finding("archives", "problem", str(error), "no server starts with it")
        except (OSError, zipfile.BadZipFile, ValueError, LookupError, TypeError):
            remedy = "delete it, then `make archives`"
            yield Finding("archives", "problem", f"{name} is not an archive of {stage}", remedy)


def _outdated(archive: Path, root: Path, stage: Stage) -> str:
    """The first file of an archive that differs from the one in this checkout; empty if there is none.

    Raises:
        BadZipFile, ValueError, LookupError, TypeError: it is not a complete archive of this stage.
    """
    with zipfile.ZipFile(archive) as packed:
        manifest = json.loads(packed.read("MAR-INF/MANIFEST.json"))
        if manifest["model"]["modelName"] != stage or packed.testzip():
            raise ValueError(archive)
        packed.getinfo(f"{stage}.yaml")
        names = set(packed.namelist())
        for folder in (root / "client", root / "handlers"):
            for pattern in ("cloudvid_*/**/*.py", f"{stage}_handler.py", "stage_handler.py", f"{stage}.yaml"):
                for file in sorted(folder.glob(pattern)):
                    name = file.relative_to(folder).as_posix()
                    if name not in names or packed.read(name) != file.read_bytes():
                        return name
    return ""


def toy_models() -> Iterator[Finding]:
    """The demo and tiny models of this checkout that are here."""
    for profile in ("demo", "tiny") if (ROOT / "demo").is_dir() else ():
        for model in sorted(profiles.toys(profile).glob(f"cloudvid-{profile}-*")):
            try:
                profiles.check(model)
                yield Finding("models", "ok", f"{model} is whole")
            except DeployError as error:
                found, _, remedy = str(error).partition("; ")
                yield Finding("models", "problem", found, remedy)


def weights() -> Iterator[Finding]:
    """The models that the settings name: whether they are here and complete."""
    import yaml
    from safetensors import SafetensorError, safe_open

    from cloudvid_stages.digests import check_list
    from cloudvid_stages.settings import SettingsError, read_settings
    from cloudvid_stages.weights import find

    for stage in Stage:
        section = yaml.safe_load((ROOT / f"handlers/{stage}.yaml").read_text())["handler"]
        try:
            checkpoint = find(read_settings(stage, section))
        except SettingsError as error:
            remedy = "`make weights` downloads the real models; PROFILE=demo needs none"
            yield Finding("weights", "note", f"{stage}: {error}", remedy)
            continue
        folder = checkpoint.path
        files = sorted(folder.rglob("*.safetensors"))
        try:
            checkpoint.check(stage)
            for file in files:
                try:
                    with safe_open(file, framework="pt"):
                        pass  # it has as many bytes as its header promises
                except (SafetensorError, OSError) as error:
                    raise SettingsError(f"{file.relative_to(folder)} is cut or damaged: {error}") from None
            check_list(folder, checkpoint.identity)
        except SettingsError as error:
            yield Finding("weights", "problem", f"{stage}: {error}", "`make weights`")
            continue
        size = sum(file.stat().st_size for file in files)
        yield Finding("weights", "ok", f"{stage}: {checkpoint.identity}, {size / GIGABYTE:.2f} GB in {folder}")


CHECKS = (java_runtime, torch_and_gpu, memory, disk, ffmpeg, model_archives, toy_models, weights)


def main() -> None:
    """Print the findings."""
    try:
        metadata.version("torchserve")
        findings = list(examine(CHECKS))
    except metadata.PackageNotFoundError:
        found = "torchserve is not installed in this Python: this checkout cannot serve"
        findings = [Finding("setup", "note", found, "`make setup`, if this machine is to serve")]
    print(json.dumps([vars(finding) for finding in findings]))


if __name__ == "__main__":
    main()
