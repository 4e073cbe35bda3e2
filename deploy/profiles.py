"""Which models a server uses: the real ones, the demo pair, the tiny ones, or those that a variable names.

`CLOUDVID_T2I_MODEL` and `CLOUDVID_I2V_MODEL` choose a stage's model regardless of the profile.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cloudvid_schema.files import sha256
from deploy import ROOT, STAGES, DeployError
from deploy.archives import listed

DEMO = ROOT / "demo/models"
PROFILES = ("auto", "demo", "real", "tiny")
_NOTES = {
    "demo": "the demo models are toys that know a few things (PROFILE=real uses the real models)",
    "tiny": "the tiny models have random weights: they make noise",
}


def toys(profile: str) -> Path:
    """The folder of a profile's models; of the tiny ones there is one for every version of the code that makes them."""
    return DEMO if profile == "demo" else ROOT / f"models/tiny-{sha256(ROOT / 'demo/tiny.py')[:8]}"


def check(model: Path) -> None:
    """Return if the files of a demo or tiny model are those that were made.

    Raises:
        DeployError: one is missing or has changed; the message says how to have the model again.
    """
    for name, digest in listed(model).items():
        file = model / name
        if not file.is_file() or sha256(file) != digest:
            state = "has changed" if file.is_file() else "is missing"
            remedy = (
                f"`git checkout {model}`" if DEMO in model.parents else f"`rm -r {model}`, then `make start` makes it"
            )
            raise DeployError(f"{model} is damaged: {name} {state} (SHA256SUMS); {remedy} again")


def choose_models(profile: str, stages: Sequence[str] = STAGES) -> dict[str, str]:
    """Make the models of a profile available. Returns the environment variables that name them.

    Args:
        profile: `real` fetches what the archives' YAML names, `demo` takes the pair that lies in this repository,
            `tiny` makes small random ones, and `auto` is `real` where torch sees a CUDA GPU, else `demo`.

    Raises:
        DeployError: the weights cannot be downloaded or made, or are damaged.
    """
    variables = {stage: f"CLOUDVID_{stage.upper()}_MODEL" for stage in stages}
    chosen = {stage: Path(model).expanduser() for stage in stages if (model := os.environ.get(variables[stage]))}
    unnamed = [stage for stage in stages if stage not in chosen]
    if profile == "auto" and unnamed:
        import torch

        profile, sees = ("real", "a") if torch.cuda.is_available() else ("demo", "no")
        print(f"profile {profile}: torch sees {sees} CUDA GPU", flush=True)
    # The workers start in another folder than this one.
    folders = {stage: model.absolute() for stage, model in chosen.items() if model.is_dir()}
    if profile in _NOTES and unnamed:
        found = {stage: toys(profile) / f"cloudvid-{profile}-{stage}" for stage in unnamed}
        missing = [str(folder) for folder in found.values() if not (folder / "model_index.json").is_file()]
        if missing and profile == "demo":
            raise DeployError(f"there is no model in {', '.join(missing)}: check it out again, or `make demo-models`")
        if missing:
            _run("demo.tiny", str(toys(profile)))
        for folder in found.values():
            check(folder)
        folders |= found
        print(_NOTES[profile], flush=True)
    if fetched := [stage for stage in stages if stage in chosen or profile == "real"]:
        _run("cloudvid_stages.weights", *fetched, "--settings", str(ROOT / "handlers"))
    return {variables[stage]: str(folder) for stage, folder in folders.items()}


def _run(module: str, *arguments: str) -> None:
    path = os.pathsep.join(str(ROOT / folder) for folder in ("", "client", "handlers"))
    environment = os.environ | {"PYTHONPATH": path, "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run([sys.executable, "-m", module, *arguments], env=environment, check=False)
    if done.returncode != 0:
        raise DeployError(f"`python -m {module} {' '.join(arguments)}` failed")
