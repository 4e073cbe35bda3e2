"""Builds the two model archives: `python -m deploy.archives MODEL_STORE`.

An archive contains its handler, the adapter, three packages and its YAML, and needs nothing else from this repository
at run time.
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from cloudvid_schema import __version__
from cloudvid_schema.files import sha256, write_file
from deploy import ROOT, STAGES, DeployError

LIST = "SHA256SUMS"
"""In the model store: the archives' digests in the format of `sha256sum -c`."""
_PACKAGES = ("client/cloudvid_schema", "handlers/cloudvid_serving", "handlers/cloudvid_stages")


def build(stage: str, store: Path, version: str, config: Path | None = None) -> Path:
    """Write `STORE/STAGE.mar` as a whole or not at all; `config` is its YAML (default: `handlers/STAGE.yaml`)."""
    handlers = ROOT / "handlers"
    with tempfile.TemporaryDirectory(prefix="cloudvid-") as folder:
        # The archiver flattens a package that is given by name, so it gets the folder that contains both.
        extra, out = Path(folder, "extra"), Path(folder, "out")
        out.mkdir()
        for package in _PACKAGES:
            target = extra / Path(package).name
            shutil.copytree(ROOT / package, target, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(handlers / "stage_handler.py", extra)
        command = [
            str(Path(sys.executable).with_name("torch-model-archiver")),
            f"--model-name={stage}",
            f"--version={version}",
            f"--handler={handlers / f'{stage}_handler.py'}",
            f"--config-file={config or handlers / f'{stage}.yaml'}",
            f"--extra-files={extra}",
            f"--export-path={out}",
        ]
        subprocess.run(command, check=True, env=os.environ | {"TMPDIR": folder})  # it works in a folder of a fixed name
        archive = write_file(store / f"{stage}.mar", (out / f"{stage}.mar").read_bytes())
    digests = listed(store) | {archive.name: sha256(archive)}
    write_file(store / LIST, "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items())).encode())
    return archive


def listed(store: Path) -> dict[str, str]:
    """The digest of each archive, or file of a model, when it was made, by name; empty if there is no list."""
    with contextlib.suppress(FileNotFoundError):
        lines = (store / LIST).read_text(errors="replace").splitlines()
        return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    return {}


def check(stage: str, store: Path) -> None:
    """Return if a stage's archive is the one that was built.

    Raises:
        DeployError: it is missing or has changed.
    """
    archive = store / f"{stage}.mar"
    if not archive.is_file():
        raise DeployError(f"{archive} does not exist; `make archives` builds it")
    if sha256(archive) != listed(store).get(archive.name):
        command = f"{sys.executable} -m deploy.archives {store}"
        raise DeployError(f"{archive} has changed since it was built ({LIST}); `{command}` builds both again")


def main() -> None:
    """Build both archives."""
    parser = argparse.ArgumentParser(description="Build the two model archives.")
    parser.add_argument("store", type=Path)
    store = parser.parse_args().store
    for stage in STAGES:
        print(build(stage, store, __version__))


if __name__ == "__main__":
    main()
