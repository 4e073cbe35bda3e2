"""Model archives built from a changed copy of the handlers."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from support import ROOT, noise

_NOISE_HANDLER = """
from stage_handler import StageHandler


class NoiseHandler(StageHandler):
    stage_class = "cloudvid_stages.noise:{stage_class}"
"""


def build(folder: Path, change: Callable[[Path], None]) -> Path:
    """A model store of both archives; `change` gets the copy of the folder `handlers`."""
    for name in ("handlers", "deploy"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "client").symlink_to(ROOT / "client")
    change(folder / "handlers")
    command = [sys.executable, "-m", "deploy.archives", folder / "store"]
    subprocess.run(command, cwd=folder, check=True, timeout=120, stdout=subprocess.DEVNULL)
    return folder / "store"


def with_noise(handlers: Path, stall_seconds: float = 0.0) -> None:
    """Have both stages make noise; a step takes a twentieth of a second, so that there is a middle of an inference.

    Args:
        stall_seconds: how much longer a step of a large picture or clip takes.
    """
    shutil.copy(noise.__file__, handlers / "cloudvid_stages")
    for stage_class in (noise.Picture, noise.Clip):
        stage = stage_class.stage
        (handlers / f"{stage}_handler.py").write_text(_NOISE_HANDLER.format(stage_class=stage_class.__name__))
        config = handlers / f"{stage}.yaml"
        section = f"handler:\n  identity: noise-{stage}@1\n  step_seconds: 0.05\n  stall_seconds: {stall_seconds}\n"
        text, count = re.subn(r"^handler:\n.*", section, config.read_text(), flags=re.MULTILINE | re.DOTALL)
        assert count == 1
        config.write_text(text)


def set_values(config: Path, **values: int) -> None:
    """Give settings of TorchServe in a stage's YAML these values."""
    text = config.read_text()
    for name, value in values.items():
        text = f"{name}: {value}\n" + re.sub(rf"^{name}:.*\n", "", text, flags=re.MULTILINE)
    config.write_text(text)
