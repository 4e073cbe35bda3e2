"""The environment of a server: which `CLOUDVID_*` variables there are, and what TorchServe and its workers inherit."""

import re
from collections.abc import Mapping

import yaml

from cloudvid_schema.faults import unknown_key
from deploy import ROOT, STAGES, DeployError

_OTHERS = ("SERVER", "T2I_URL", "I2V_URL", "MANAGEMENT", "TOKEN", "CA", "KEY_FILE", "TOKENS_FILE", "PORT")
"""The client's (`cloudvid.cli.options`), the proxy's, and compose.yaml's."""
LOG_FORMAT = "CLOUDVID_LOG_FORMAT"
"""`json` or `text`: of the lines that workers log."""
_SERVICE_LINK = re.compile(r"CLOUDVID_(\w+_)?(SERVICE_(HOST|PORT\w*)|PORT(_\d+_\w+)?)")
"""Kubernetes sets these in every pod beside a Service `cloudvid-...`."""
# An allow-list: a secret can have any name, and the workers can read the JVM's environment.
_INHERITED = re.compile(
    r"PATH|CPATH|LIBRARY_PATH|C_INCLUDE_PATH|CPLUS_INCLUDE_PATH|HUGGINGFACE_HUB_CACHE|_JAVA_OPTIONS|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_\w+|TZ|TERM|XDG_\w+|LD_\w+|MALLOC_\w+|GLIBC_TUNABLES"
    r"|PYTHON(?!PATH$)\w+|VIRTUAL_ENV|JAVA_\w+|JDK_\w+|CC|CXX|IMAGEIO_\w+"
    r"|(CUDA|CUDNN|CUBLAS|NVIDIA|NCCL|HIP|HSA|ROCR|ROCM|TORCH|TORCHINDUCTOR|PYTORCH|TRITON|XFORMERS)_?\w+"
    r"|(OMP|KMP|GOMP|MKL|OPENBLAS|NUMEXPR)_\w+|TOKENIZERS_\w+|(TRANSFORMERS|DIFFUSERS|ACCELERATE|SAFETENSORS)_\w+"
    r"|(ATEN|ONEDNN|DNNL|MIOPEN|GPU|AMD)_\w+|HF_(?!TOKEN)\w+"
)


def settings_names() -> set[str]:
    """The variables that override a stage's settings: those of the `handler:` section of its YAML."""
    return {
        f"CLOUDVID_{stage}_{name}".upper()
        for stage in STAGES
        for name in yaml.safe_load((ROOT / f"handlers/{stage}.yaml").read_text())["handler"]
    }


def check_names(environment: Mapping[str, str]) -> None:
    """Return if every `CLOUDVID_*` variable is one that somebody reads.

    Raises:
        DeployError: some are not, e.g. because they are misspelt.
    """
    known = settings_names() | {LOG_FORMAT, *(f"CLOUDVID_{name}" for name in _OTHERS)}
    unknown = [
        f"{name} {unknown_key(name, known)}"
        for name, value in sorted(environment.items())
        if value and name.startswith("CLOUDVID_") and name not in known and not _SERVICE_LINK.fullmatch(name)
    ]
    if unknown:
        raise DeployError("; ".join(unknown))
    if (form := environment.get(LOG_FORMAT) or "text") not in ("text", "json"):
        raise DeployError(f"{LOG_FORMAT} must be text or json, got {form!r}")


def inherited(environment: Mapping[str, str]) -> dict[str, str]:
    """What TorchServe and its workers need of an environment."""
    kept = settings_names() | {LOG_FORMAT}
    return {name: value for name, value in environment.items() if name in kept or _INHERITED.fullmatch(name)}
