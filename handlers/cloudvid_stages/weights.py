"""Where a stage's weights lie: a local directory, or the Hub's cache. Fetching them is a step of its own.

    python -m cloudvid_stages.weights t2i i2v

fetches what the settings name. A stage itself never downloads: a worker that starts must not depend on a network.
"""

import argparse
import hashlib
import json
import re
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import httpx2
import torch
import yaml
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RevisionNotFoundError,
)

from cloudvid_schema.protocol import Stage
from cloudvid_stages.digests import PATTERNS, check_list, files_of, write_list
from cloudvid_stages.settings import SettingsError, StageSettings, read_settings

PIPELINES = {Stage.T2I: "StableDiffusionPipeline", Stage.I2V: "StableVideoDiffusionPipeline"}
"""The diffusers class that each stage runs."""
_PARTS_WITH_WEIGHTS = ("unet", "vae", "text_encoder", "image_encoder", "safety_checker")
_FP16 = re.compile(r"\.fp16(-\d+-of-\d+)?\.safetensors$")
_PLAIN = re.compile(r"[a-z_]+(-\d+-of-\d+)?\.safetensors")  # no variant
_SAMPLES, _SAMPLE_BYTES = 64, 4096


@dataclass(frozen=True)
class Checkpoint:
    """A model on this machine."""

    path: Path
    """A directory in diffusers' layout."""
    identity: str
    """`id@commit` of a Hub model, `name@fingerprint` of a directory."""

    @property
    def has_fp16_variant(self) -> bool:
        """Whether files of diffusers' `fp16` variant are there."""
        return any(_FP16.search(file.name) for file in self.path.glob("*/*.safetensors"))

    def check(self, stage: Stage) -> None:
        """Refuse a checkpoint of another pipeline class, or one of which a part is missing.

        Raises:
            SettingsError: the message names both classes, or the part.
        """
        try:
            index = json.loads((self.path / "model_index.json").read_text())
            found = index["_class_name"]
        except (OSError, ValueError, KeyError, TypeError):
            raise SettingsError(f"{self.identity}: no readable model_index.json; a diffusers model has one") from None
        if found != PIPELINES[stage]:
            raise SettingsError(f"{self.identity} is a {found} checkpoint; {stage} needs a {PIPELINES[stage]}")
        for part in _PARTS_WITH_WEIGHTS:
            if (index.get(part) or [None])[0] and not any((self.path / part).glob("*.safetensors")):
                raise SettingsError(
                    f"{self.identity} has no safetensors weights in {part}/; `make weights` fetches them"
                )


def find(settings: StageSettings) -> Checkpoint:
    """The model that the settings name, or its first mirror, without touching the network.

    Raises:
        SettingsError: it is not on this machine; the message names the command that fetches it.
    """
    directory = Path(settings.model).expanduser()
    if directory.is_dir():
        directory = directory.resolve()
        return Checkpoint(directory, f"{directory.name}@{fingerprint(directory)}")
    if settings.model.startswith((".", "/", "~")):
        raise SettingsError(f"model directory {settings.model} is not there")
    for name in (settings.model, *settings.mirrors):
        try:
            index = try_to_load_from_cache(name, "model_index.json", revision=settings.revision)
        except HFValidationError as error:
            raise SettingsError(f"model {name!r} is neither a directory nor a Hub id: {error}") from None
        if isinstance(index, str):
            snapshot = Path(index).parent
            return Checkpoint(snapshot, f"{name}@{snapshot.name}")
    raise SettingsError(f"{settings.model} is not in the Hub cache; `make weights` fetches it")


def find_lora(settings: StageSettings, may_fetch: bool = False) -> Path | None:
    """The LoRA file that the settings name, if they name one; downloaded from the Hub only where that is allowed.

    Raises:
        SettingsError: it is not on this machine or cannot be had, or is no safetensors file.
    """
    if (lora := getattr(settings, "lora", None)) is None:
        return None
    file, on_hub = Path(lora).expanduser(), _hub_file(lora)
    if may_fetch and on_hub and not file.is_file():
        try:
            return Path(hf_hub_download(*on_hub))
        except (HfHubHTTPError, httpx2.HTTPError, OSError, ValueError) as error:
            raise SettingsError(f"lora: {on_hub[0]}: {_remedy(on_hub[0], None, error)}") from None
    if not lora.endswith(".safetensors") or not (on_hub or file.is_absolute()):
        forms = "the absolute path of a .safetensors file, or one on the Hub (user/repository/file.safetensors)"
        raise SettingsError(f"lora: must be {forms}, got {lora}")
    if file.is_file():
        return file.resolve()
    if on_hub and isinstance(found := try_to_load_from_cache(*on_hub), str):
        return Path(found)
    raise SettingsError(f"lora: {lora} is neither a file nor in the Hub cache; `make weights` fetches it")


def _hub_file(name: str) -> tuple[str, str] | None:
    """Repository and file of `user/repository/file`, or None."""
    parts = name.split("/", 2)
    return ("/".join(parts[:2]), parts[2]) if len(parts) == 3 and all(parts) and name[0] not in "./~" else None


def fetch(settings: StageSettings) -> Checkpoint:
    """Download the model that the settings name, or else its first mirror that can be had, into the Hub's cache.

    Only the files that the pipeline loads: of two precisions the one that the settings will use. A download that was
    cut off goes on where it stopped.

    Raises:
        SettingsError: none could be had; the message gives each one's reason and remedy.
    """
    if Path(settings.model).expanduser().is_dir() or constants.HF_HUB_OFFLINE:
        return find(settings)
    reasons = []
    for name in (settings.model, *settings.mirrors):
        try:
            info = HfApi().model_info(name, revision=settings.revision)
            on_hub = [file.rfilename for file in info.siblings or ()]
            files = wanted_files(on_hub, settings.precision(torch.cuda.is_available()) == "fp16")
            snapshot = Path(snapshot_download(name, revision=settings.revision, allow_patterns=files))
        except (HfHubHTTPError, httpx2.HTTPError, OSError, ValueError) as error:
            reasons.append(f"{name}: {_remedy(name, settings.revision, error)}")
            continue
        _list(snapshot, files)
        return Checkpoint(snapshot, f"{name}@{snapshot.name}")
    try:
        found = find(settings)  # a server must start again while the Hub is away
    except SettingsError:
        raise SettingsError("no weights could be fetched\n  " + "\n  ".join(reasons)) from None
    print(f"the Hub's cache serves, since nothing could be fetched ({'; '.join(reasons)})", file=sys.stderr)
    return found


def _list(folder: Path, names: Iterable[str] | None = None) -> None:
    """Have a model's files listed, where its folder may be written."""
    try:
        write_list(folder, names)
    except OSError as error:
        print(f"note: {folder}: no list of sha256 was written ({error.strerror}); none is checked", file=sys.stderr)


def wanted_files(files: Iterable[str], fp16: bool) -> list[str]:
    """The files of a repository that a pipeline loads: of weights that are there in two precisions one, by `fp16`."""
    parts = [file for file in files if any(fnmatch(file, pattern) for pattern in PATTERNS)]
    weights = [file for file in parts if file.endswith(".safetensors")]
    wanted = [file for file in parts if file not in weights]
    for folder in sorted({Path(file).parent for file in weights}):
        inside = [file for file in weights if Path(file).parent == folder]
        full = [file for file in inside if _PLAIN.fullmatch(Path(file).name)]
        half = [file for file in inside if _FP16.search(file)]
        wanted += (half or full) if fp16 else (full or half)
    return wanted


def _remedy(name: str, revision: str | None, error: Exception) -> str:
    """Why a model could not be fetched, and what to do about it."""
    host = constants.ENDPOINT
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    restricted = (
        f"access is restricted; accept its licence on {host}/{name} and set HF_TOKEN to a token that may read it"
    )
    unreachable = isinstance(error, httpx2.TransportError | ConnectionError | LocalEntryNotFoundError)
    cases = (
        (isinstance(error, GatedRepoError), restricted),
        (isinstance(error, RevisionNotFoundError), f"has no revision {revision!r}"),
        (isinstance(error, HFValidationError), "is neither a directory nor a Hub id"),
        (unreachable, f"{host} cannot be reached; check the network, set HF_ENDPOINT to a mirror, or name a folder"),
        (status == 401, "is private, not there, or HF_TOKEN is refused; check the name and the token"),
        (status == 403, restricted),
        (status == 404, "is not there; check the name, or name a mirror"),
        (status is not None, f"the Hub answers {status}; try again later"),
    )
    return next((text for is_so, text in cases if is_so), str(error).strip().partition("\n")[0])


def fingerprint(directory: Path) -> str:
    """12 hex digits that tell one model directory's contents from another's.

    It covers every configuration file, and of each safetensors file the size, the header (names, shapes, types)
    and 64 samples of 4 KiB spread over the weights: milliseconds where hashing gigabytes takes seconds, and any
    training step moves all weights.
    """
    digest = hashlib.sha256()
    for file in files_of(directory):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(directory).as_posix()}\0{size}\0".encode())
        with file.open("rb") as stream:
            if file.suffix != ".safetensors" or size < _SAMPLES * _SAMPLE_BYTES:
                digest.update(stream.read())
                continue
            header = struct.unpack("<Q", stream.read(8))[0]
            digest.update(stream.read(min(header, size)))
            for sample in range(_SAMPLES):
                stream.seek(8 + header + (size - 8 - header - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:12]


def main(arguments: Iterable[str] | None = None) -> int:
    """Fetch the weights of the stages named on the command line."""
    parser = argparse.ArgumentParser(description="Fetch the weights of the named stages into the Hub's cache.")
    parser.add_argument("stages", nargs="+", type=Stage, metavar="t2i|i2v")
    parser.add_argument("--list", action="store_true", help="write SHA256SUMS into a model directory too, and check it")
    parser.add_argument("--settings", type=Path, default=Path("handlers"), help="folder of t2i.yaml and i2v.yaml")
    options = parser.parse_args(None if arguments is None else list(arguments))
    for stage in options.stages:
        section: dict[str, Any] = yaml.safe_load((options.settings / f"{stage}.yaml").read_text())["handler"]
        try:
            settings = read_settings(stage, section)
            checkpoint = fetch(settings)
            checkpoint.check(stage)
            find_lora(settings, may_fetch=True)
            if options.list:
                if Path(settings.model).expanduser().is_dir():  # else `fetch` has listed what it fetched
                    _list(checkpoint.path)
                check_list(checkpoint.path, checkpoint.identity)  # else a worker does, unless check_weights is off
        except SettingsError as error:
            print(f"{stage}: {error}", file=sys.stderr)
            return 1
        print(f"{stage}: {checkpoint.identity}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
