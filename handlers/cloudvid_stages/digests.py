"""The sha256 of every file of a model: listed where the model is made or fetched, checked where it is loaded.

The list is `SHA256SUMS` in the model's folder, as `sha256sum -c` reads it. A snapshot of the Hub's cache is shared with
other programs, which may add files; what is not listed there has to be what its name in the cache promises.
"""

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from huggingface_hub.utils.sha import git_hash

from cloudvid_schema.files import sha256, write_file
from cloudvid_stages.settings import SettingsError

VOCABULARY = "vocabulary.txt"
PATTERNS = ("model_index.json", VOCABULARY, "[!.]*/*.json", "[!.]*/*.txt", "[!.]*/*.safetensors", "[!.]*/*.model")
"""The files of a model that a pipeline may load."""
_LIST = "SHA256SUMS"
_LINE = re.compile(r"(?P<digest>[0-9a-f]{64})  (?P<name>.+)")
_THREADS = 4  # hashing lets go of the interpreter


def files_of(folder: Path) -> list[Path]:
    """Every file of a model that a pipeline may load, sorted."""
    return sorted({path for pattern in PATTERNS for path in folder.glob(pattern)})


def write_list(folder: Path, names: Iterable[str] | None = None) -> None:
    """List the files of a model that are not listed yet: those named, relative to its folder, or all that there are.

    Raises:
        SettingsError: a file of the Hub's cache is not what its name there promises.
        OSError: the folder cannot be written.
    """
    listed = _read_list(folder) or {}
    there = [path.relative_to(folder).as_posix() for path in files_of(folder)] if names is None else sorted(names)
    new = [name for name in there if name not in listed]
    if not new:
        return
    for name, digest in zip(new, _digests(folder / name for name in new), strict=True):
        if _keeps_promise(folder / name, digest) is False:
            raise SettingsError(f"{name} was damaged on its way from the Hub; {_fetch_again(folder / name)}")
        listed[name] = digest
    text = "".join(f"{digest}  {name}\n" for name, digest in sorted(listed.items()))
    write_file(folder / _LIST, text.encode())


def check_list(folder: Path, identity: str) -> None:
    """Return where the files of a model are those that its list has, or where it has no list.

    Raises:
        SettingsError: one was changed, is not there, or is not listed.
    """
    if (listed := _read_list(folder)) is None:
        return
    if missing := [name for name in listed if not (folder / name).is_file()]:
        raise SettingsError(f"{identity}: {missing[0]} is in {_LIST}, and is not there; {_fetch_again(None)}")
    names = sorted({*listed, *(path.relative_to(folder).as_posix() for path in files_of(folder))})
    meant = f"; if you mean it, delete {_LIST}, and `make weights` writes it again"
    for name, digest in zip(names, _digests(folder / name for name in names), strict=True):
        if name not in listed:
            if not _keeps_promise(folder / name, digest):
                raise SettingsError(f"{identity}: {name} is not in {_LIST}{meant}")
        elif digest != listed[name]:
            remedy = _fetch_again(folder / name)
            raise SettingsError(f"{identity}: {name} was changed: its sha256 is not that of {_LIST}; {remedy}{meant}")


def _fetch_again(file: Path | None) -> str:
    """How to have a file as it was; None for one that is not there."""
    if file is not None and file.is_symlink():  # the Hub's cache: while what it leads to is there, nothing is fetched
        return f"delete {file.resolve()}, and `make weights` fetches it again"
    return "copy it here again, or, in the Hub's cache, `make weights` fetches it"


def _keeps_promise(file: Path, digest: str) -> bool | None:
    """Whether a file of the Hub's cache is what its name there says; None where no name says anything.

    Its snapshots link to `blobs/`, where a large file has its sha256 for a name and a small one its id in git. (That
    may be a link again, to a store of Xet's with names of another kind.)
    """
    promised = file.readlink().name if file.is_symlink() else ""
    if re.fullmatch("[0-9a-f]{64}", promised):
        return promised == digest
    if re.fullmatch("[0-9a-f]{40}", promised):
        # Only where it is so: a mirror of the Hub may name small files otherwise.
        return promised == git_hash(file.read_bytes()) or None
    return None


def _read_list(folder: Path) -> dict[str, str] | None:
    try:
        lines = (folder / _LIST).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return None
    found = [_LINE.fullmatch(line) for line in lines]
    if None in found:
        raise SettingsError(f"{folder.name}/{_LIST}, line {found.index(None) + 1}: must be a sha256 and a name")
    return {match["name"]: match["digest"] for match in found if match}


def _digests(files: Iterable[Path]) -> list[str]:
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(sha256, files))
