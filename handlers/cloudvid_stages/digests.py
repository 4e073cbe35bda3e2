"""The sha256 of every file of a model: listed where the model is made or fetched, checked where it is loaded.

The list is `SHA256SUMS` in the model's folder, as `sha256sum -c` reads it.
"""

import hashlib
import os
import re
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cloudvid_stages.settings import SettingsError

_LIST = "SHA256SUMS"
_LINE = re.compile(r"(?P<digest>[0-9a-f]{64})  (?P<name>.+)")
_SUFFIXES = (".json", ".txt", ".model", ".safetensors")
_THREADS = 4  # hashing lets go of the interpreter


def files_of(folder: Path) -> list[Path]:
    """Every file of a model that a pipeline may load, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix in _SUFFIXES)


def write_list(folder: Path) -> None:
    """List those files of a model that are not listed yet.

    Raises:
        SettingsError: a file of the Hub's cache, where large ones are named by their sha256, has another.
        OSError: the folder cannot be written.
    """
    listed = _read_list(folder) or {}
    new = [path for path in files_of(folder) if path.relative_to(folder).as_posix() not in listed]
    if not new:
        return
    for path, digest in zip(new, _digests(new), strict=True):
        promised = path.resolve().name
        if re.fullmatch("[0-9a-f]{64}", promised) and promised != digest:
            raise SettingsError(f"{path} was damaged on its way from the Hub; delete it, and `make weights` fetches it")
        listed[path.relative_to(folder).as_posix()] = digest
    handle, half = tempfile.mkstemp(dir=folder, prefix=f".{_LIST}.")
    with os.fdopen(handle, "w") as stream:
        stream.writelines(f"{digest}  {name}\n" for name, digest in sorted(listed.items()))
        os.fchmod(handle, 0o644)  # whoever may read the weights
    Path(half).replace(folder / _LIST)


def check_list(folder: Path, identity: str) -> None:
    """Return where the files of a model are those that its list has, or where it has no list.

    Raises:
        SettingsError: one was changed, is not there, or is not listed.
    """
    if (listed := _read_list(folder)) is None:
        return
    there = {path.relative_to(folder).as_posix(): path for path in files_of(folder)}
    if missing := sorted(listed.keys() - there.keys()):
        raise SettingsError(f"{identity}: {missing[0]} is in {_LIST}, and is not there; `make weights` fetches it")
    remedy = f"if you mean it, delete {_LIST} and let `make weights` write it anew"
    if unlisted := sorted(there.keys() - listed.keys()):
        raise SettingsError(f"{identity}: {unlisted[0]} is not in {_LIST}; {remedy}")
    for name, digest in zip(there, _digests(there.values()), strict=True):
        if digest != listed[name]:
            raise SettingsError(f"{identity}: {name} was changed: its sha256 is not that of {_LIST}; {remedy}")


def _read_list(folder: Path) -> dict[str, str] | None:
    try:
        lines = (folder / _LIST).read_text().splitlines()
    except FileNotFoundError:
        return None
    found = [_LINE.fullmatch(line) for line in lines]
    if None in found:
        raise SettingsError(f"{folder.name}/{_LIST}, line {found.index(None) + 1}: must be a sha256 and a name")
    return {match["name"]: match["digest"] for match in found if match}


def _digests(files: Iterable[Path]) -> list[str]:
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(_digest, files))


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
