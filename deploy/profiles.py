"""Which models a server uses: the real ones, the demo pair, the tiny ones, or those that a variable names.

`CLOUDVID_T2I_MODEL` and `CLOUDVID_I2V_MODEL` choose a stage's model regardless of the profile.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.archives import STAGES

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "demo/models"
PROFILES = ("auto", "demo", "real", "tiny")
_NOTES = {
    "demo": "the demo models are toys that know a few things (PROFILE=real uses the real models)",
    "tiny": "the tiny models have random weights: they make noise",
}


class ModelsError(RuntimeError):
    """The models are not available; the message says why."""


def choose_models(profile: str, stages: Sequence[str] = STAGES) -> dict[str, str]:
    """Make the models of a profile available. Returns the environment variables that name them.

    Args:
        profile: `real` fetches what the archives' YAML names, `demo` takes the pair that lies in this repository,
            `tiny` makes small random ones, and `auto` is `real` where torch sees a CUDA GPU, else `demo`.
        stages: whose models.

    Raises:
        ModelsError: the weights cannot be downloaded or made.
    """
    unnamed = [stage for stage in stages if not os.environ.get(f"CLOUDVID_{stage.upper()}_MODEL")]
    if profile == "auto" and unnamed:
        profile = "real" if _has_gpu() else "demo"
        print(f"profile {profile}: torch sees {'a' if profile == 'real' else 'no'} CUDA GPU", flush=True)
    # The workers start in another folder than this one.
    chosen = {stage: os.environ[f"CLOUDVID_{stage.upper()}_MODEL"] for stage in stages if stage not in unnamed}
    named = {
        f"CLOUDVID_{stage.upper()}_MODEL": str(Path(model).expanduser().absolute())
        for stage, model in chosen.items()
        if Path(model).expanduser().is_dir()
    }
    if profile in ("demo", "tiny") and unnamed:
        folders = {stage: _toys(profile) / f"cloudvid-{profile}-{stage}" for stage in unnamed}
        missing = [str(folder) for folder in folders.values() if not (folder / "model_index.json").is_file()]
        if missing and profile == "demo":
            raise ModelsError(f"there is no model in {', '.join(missing)}: check it out again, or `make demo-models`")
        if missing:
            _run("demo.tiny", str(_toys(profile)))
        named |= {f"CLOUDVID_{stage.upper()}_MODEL": str(folder) for stage, folder in folders.items()}
        print(_NOTES[profile], flush=True)
    fetched = [stage for stage in stages if stage not in unnamed or profile == "real"]
    if fetched:
        _run("cloudvid_stages.weights", *fetched, "--settings", str(ROOT / "handlers"))
    return named


def _has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _toys(profile: str) -> Path:
    """The folder of the demo or tiny models; of the tiny ones another for every version of the code that makes them."""
    if profile == "demo":
        return DEMO
    source = (ROOT / "demo/tiny.py").read_bytes()
    return ROOT / "models" / f"tiny-{hashlib.sha256(source).hexdigest()[:8]}"


def _run(module: str, *arguments: str) -> None:
    path = os.pathsep.join(str(ROOT / folder) for folder in ("", "client", "handlers"))
    environment = os.environ | {"PYTHONPATH": path, "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run([sys.executable, "-m", module, *arguments], env=environment, check=False)
    if done.returncode != 0:
        raise ModelsError(f"`python -m {module} {' '.join(arguments)}` failed")
