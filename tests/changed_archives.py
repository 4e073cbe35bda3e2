"""Model archives built from a changed copy of the handlers."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import noise
from conftest import ROOT

_NOISE_HANDLER = """
from stage_handler import StageHandler


class NoiseHandler(StageHandler):
    @staticmethod
    def import_stage():
        from cloudvid_stages.noise import {stage_class}

        return {stage_class}
"""


def build(folder: Path, change: Callable[[Path], None]) -> Path:
    """A model store of both archives; `change` gets the copy of the folder `handlers`."""
    for name in ("handlers", "deploy"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "client").symlink_to(ROOT / "client")
    change(folder / "handlers")
    command = [sys.executable, folder / "deploy/archives.py", folder / "store"]
    subprocess.run(command, check=True, timeout=120, stdout=subprocess.DEVNULL)
    return folder / "store"


def with_noise(handlers: Path) -> None:
    """Have both stages make noise; a step takes a twentieth of a second, so that there is a middle of an inference."""
    shutil.copy(noise.__file__, handlers / "cloudvid_stages")
    for stage_class in (noise.Picture, noise.Clip):
        stage = stage_class.stage
        (handlers / f"{stage}_handler.py").write_text(_NOISE_HANDLER.format(stage_class=stage_class.__name__))
        config = handlers / f"{stage}.yaml"
        section = f"handler:\n  identity: noise-{stage}@1\n  step_seconds: 0.05\n"
        text, count = re.subn(r"^handler:\n.*", section, config.read_text(), flags=re.MULTILINE | re.DOTALL)
        assert count == 1
        config.write_text(text)
