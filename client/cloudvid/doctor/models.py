"""Checks of what a server loads, where this is a checkout: archives and weights."""

import json
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cloudvid.doctor.findings import GIGABYTE, Finding, Place
from cloudvid.manifest import file_digest
from cloudvid_schema.protocol import Stage

_PIPELINES = {Stage.T2I: "StableDiffusionPipeline", Stage.I2V: "StableVideoDiffusionPipeline"}
_PARTS = ("unet", "vae", "text_encoder", "image_encoder")
"""Parts of a pipeline that have weights."""


def archives(place: Place) -> Iterator[Finding]:
    """The model archives, and whether what is in them is what is here."""
    if not (place.folder / "handlers").is_dir():
        return
    for stage in Stage:
        path = place.folder / "model_store" / f"{stage}.mar"
        name = path.relative_to(place.folder)
        try:
            changed = _changed(path, stage, place.folder)
        except FileNotFoundError:
            found, remedy = f"{name} is not there", "`make archives` builds it (`make start` does too)"
            yield Finding(check="archives", level="note", found=found, remedy=remedy)
        except (OSError, zipfile.BadZipFile, ValueError, LookupError, TypeError):
            remedy = "delete it, then `make archives`"
            yield Finding(check="archives", level="problem", found=f"{name} is no archive of {stage}", remedy=remedy)
        else:
            if changed:
                remedy = "`make archives` builds it anew (`make start` does too)"
                found = f"{name} has another {changed} than this folder"
                yield Finding(check="archives", level="note", found=found, remedy=remedy)
            elif not _is_listed(path):
                remedy = "delete it, then `make archives`; no server starts with it"
                found = f"{name} is not the one that was built: its sha256 is not in SHA256SUMS beside it"
                yield Finding(check="archives", level="problem", found=found, remedy=remedy)
            else:
                yield Finding(check="archives", level="ok", found=f"{name}, as this folder would build it")


def _changed(path: Path, stage: Stage, folder: Path) -> str:
    """The first file that an archive has otherwise than the folder that it is built from; empty where none is.

    Raises:
        OSError, BadZipFile, ValueError, LookupError, TypeError: it is no whole archive of this stage.
    """
    with zipfile.ZipFile(path) as archive:
        if json.loads(archive.read("MAR-INF/MANIFEST.json"))["model"]["modelName"] != stage or archive.testzip():
            raise ValueError
        for name in archive.namelist():
            sources = (folder / "handlers" / name, folder / "client" / name)
            source = next((source for source in sources if source.is_file()), None)
            if source is not None and source.read_bytes() != archive.read(name):
                return name
    return ""


def _is_listed(path: Path) -> bool:
    try:
        return f"{file_digest(path)}  {path.name}\n" in (path.parent / "SHA256SUMS").read_text()
    except OSError:
        return False


def weights(place: Place) -> Iterator[Finding]:
    """The weights of the models that the settings name: whether they are here, and whole."""
    for stage in Stage:
        settings = _settings(place, stage)
        if settings is not None:
            yield _weights_of(place, stage, settings)


def _weights_of(place: Place, stage: Stage, settings: dict[str, Any]) -> Finding:
    named = str(settings["model"])
    folder = Path(named).expanduser()
    if folder.is_dir():
        return _whole(stage, named, folder, "name a folder in diffusers' layout, or a Hub id")
    if named.startswith((".", "/", "~")):
        remedy = f"correct CLOUDVID_{stage.upper()}_MODEL, or handlers/{stage}.yaml"
        return Finding(check="weights", level="problem", found=f"{stage}: there is no folder {named}", remedy=remedy)
    for name in (named, *settings["mirrors"]):
        if snapshot := _snapshot(place.hub_cache, name, settings["revision"]):
            return _whole(stage, name, snapshot, "`make weights` fetches what is missing")
    found = f"{stage}: {named} is not in {place.hub_cache}"
    remedy = "`make weights` fetches it (`make start PROFILE=real` does too); PROFILE=demo needs none"
    return Finding(check="weights", level="note", found=found, remedy=remedy)


def _settings(place: Place, stage: Stage) -> dict[str, Any] | None:
    """Model, mirrors and revision that a server started here would load, as `handlers` reads them; None if none is."""
    prefix = f"CLOUDVID_{stage.upper()}_"
    chosen = {name: place.environment.get(prefix + name.upper()) for name in ("model", "mirrors", "revision")}
    section: dict[str, Any] = {}
    try:
        import yaml

        section = yaml.safe_load((place.folder / f"handlers/{stage}.yaml").read_text())["handler"]
    except (ImportError, OSError, ValueError, LookupError, TypeError):
        if not chosen["model"]:
            return None
    mirrors = [] if chosen["model"] else section.get("mirrors", [])
    return {
        "model": chosen["model"] or section["model"],
        "mirrors": chosen["mirrors"].split(",") if chosen["mirrors"] else mirrors,
        "revision": chosen["revision"] or section.get("revision"),
    }


def _snapshot(cache: Path, name: str, revision: str | None) -> Path | None:
    """Where a model lies in the Hub's cache, if it does."""
    folder = cache / f"models--{name.replace('/', '--')}"
    wanted = revision or "main"
    try:
        commit = (folder / "refs" / wanted).read_text().strip()
    except OSError:
        commit = wanted
    snapshot = folder / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def _whole(stage: Stage, name: str, folder: Path, remedy: str) -> Finding:
    """Whether a model in diffusers' layout is all there."""

    def problem(text: str) -> Finding:
        return Finding(check="weights", level="problem", found=f"{stage}: {name} {text}", remedy=remedy)

    try:
        index = json.loads((folder / "model_index.json").read_text())
        kind = index["_class_name"]
    except (OSError, ValueError, LookupError, TypeError):
        return problem(f"has no readable model_index.json in {folder}")
    if kind != _PIPELINES[stage]:
        return problem(f"is a {kind}; {stage} needs a {_PIPELINES[stage]}")
    size = 0
    for part in _PARTS:
        files = sorted((folder / part).glob("*.safetensors"))
        is_needed = part in ("unet", "vae") or (index.get(part) or [None])[0] is not None
        if is_needed and not files:
            return problem(f"has no safetensors weights in {part}/")
        for file in files:
            if fault := _fault(file):
                return problem(f"is not whole: {part}/{file.name} {fault}")
            size += file.stat().st_size
    return Finding(check="weights", level="ok", found=f"{stage}: {name}, {size / GIGABYTE:.2f} GB in {folder}")


def _fault(file: Path) -> str:
    """What is wrong with a safetensors file: its header says how long it must be. Empty where nothing is.

    (Format: 8 bytes little-endian, the header's length; the header, JSON; the tensors.)
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > size:
                return f"is cut: {size:,} bytes"
            header = json.loads(stream.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except (ValueError, struct.error, LookupError, TypeError, AttributeError):
        return "is no safetensors file"
    expected = 8 + length + max(ends, default=0)
    return "" if size == expected else f"has {size:,} bytes instead of {expected:,}"
