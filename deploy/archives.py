"""Builds the two model archives: `python deploy/archives.py MODEL_STORE`.

An archive holds its handler, the adapter, `cloudvid_schema`, `cloudvid_stages` and its YAML, and needs nothing else of
this repository at run time.
"""

import argparse
import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
LIST = "SHA256SUMS"
"""In the model store: the archives' digests, as `sha256sum -c` reads them."""
_PACKAGES = (_ROOT / "client/cloudvid_schema", _ROOT / "handlers/cloudvid_stages")


def build(stage: str, store: Path, version: str, config: Path | None = None) -> Path:
    """Write `STORE/STAGE.mar`, replacing one that is there only once the new one is whole.

    Args:
        stage: which.
        store: made if it is not there.
        version: of the archive.
        config: its YAML; default: `handlers/STAGE.yaml`.
    """
    handlers = _ROOT / "handlers"
    with tempfile.TemporaryDirectory(prefix="cloudvid-") as folder:
        # The archiver flattens a package that it is given by name: it gets the folder that holds both instead.
        extra, out = Path(folder, "extra"), Path(folder, "out")
        out.mkdir()
        for package in _PACKAGES:
            shutil.copytree(package, extra / package.name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(handlers / "stage_handler.py", extra)
        # fmt: off
        subprocess.run([
            str(Path(sys.executable).with_name("torch-model-archiver")),
            "--model-name", stage, "--version", version,
            "--handler", str(handlers / f"{stage}_handler.py"),
            "--config-file", str(config or handlers / f"{stage}.yaml"),
            "--extra-files", str(extra), "--export-path", str(out),
        ], check=True, env=os.environ | {"TMPDIR": folder})  # it works in a folder of a fixed name
        # fmt: on
        store.mkdir(parents=True, exist_ok=True)
        half = store / f".{stage}.mar.half"
        shutil.copy(out / f"{stage}.mar", half)
        digests = {name: digest for name, digest in listed(store).items() if name != f"{stage}.mar"}
        digests[f"{stage}.mar"] = sha256(half)
        half_list = store / f".{LIST}.half"
        half_list.write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items())))
        archive = half.replace(store / f"{stage}.mar")
        half_list.replace(store / LIST)
        return archive


def listed(store: Path) -> dict[str, str]:
    """The sha256 of each archive when it was built, by name; of none where there is no list."""
    with contextlib.suppress(FileNotFoundError):
        lines = (store / LIST).read_text(errors="replace").splitlines()
        return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    return {}


def sha256(file: Path) -> str:
    """Of a file, hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def main() -> None:
    """Build both archives."""
    parser = argparse.ArgumentParser(description="Build the two model archives.")
    parser.add_argument("store", type=Path)
    store = parser.parse_args().store
    sys.path.insert(0, str(_ROOT / "client"))
    from cloudvid_schema import __version__

    for stage in ("t2i", "i2v"):
        print(build(stage, store, __version__))


if __name__ == "__main__":
    main()
