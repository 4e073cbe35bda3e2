"""The Kubernetes objects of each overlay, as kustomize renders them (`kubectl kustomize`)."""

import shutil
import subprocess
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import yaml

from support import ROOT

FOLDER = ROOT / "deploy/kubernetes"
OVERLAYS = ("base", "front", "overlays/gpu", "overlays/keda", "overlays/kserve", "overlays/demo")
WORKLOADS = tuple(name for name in OVERLAYS if name != "front")
_KUBECTL = shutil.which("kubectl")


def kubectl(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """What kubectl says. Where there is none, the test that asks is skipped, or the module whose import asks."""
    if _KUBECTL is None:
        reason = "no kubectl here, which renders the manifests (https://kubernetes.io/docs/tasks/tools)"
        pytest.skip(reason, allow_module_level=True)
    command = [_KUBECTL, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


@cache
def _rendered(overlay: str) -> list[dict]:
    done = kubectl("kustomize", FOLDER / overlay)
    assert (done.returncode, done.stderr) == (0, ""), "a warning counts too"
    return list(yaml.safe_load_all(done.stdout))


def render(overlay: str) -> list[dict]:
    """The overlay's objects, the caller's own to change."""
    return deepcopy(_rendered(overlay))


def of_kind(overlay: str, *kinds: str) -> list[dict]:
    return [resource for resource in render(overlay) if resource["kind"] in kinds]


def pods(overlay: str) -> Iterator[tuple[str, dict, dict]]:
    """Name, labels and specification of the pods that the overlay's objects make."""
    for resource in of_kind(overlay, "Deployment", "Job", "InferenceService"):
        name = resource["metadata"]["name"]
        if resource["kind"] == "InferenceService":
            yield name, resource["metadata"]["labels"], resource["spec"]["predictor"]
        else:
            template = resource["spec"]["template"]
            yield name, template["metadata"]["labels"], template["spec"]


def stages(overlay: str) -> Iterator[tuple[str, dict, dict]]:
    """Stage, labels and specification of the pods that serve one."""
    for _, labels, spec in pods(overlay):
        if (stage := labels["app.kubernetes.io/component"]) != "weights":
            yield stage, labels, spec


def containers(spec: dict) -> dict[str, dict]:
    """A pod's containers by the part they play; in KServe the proxy has another name."""
    return {
        "proxy" if each["name"] == "kserve-container" else each["name"]: each
        for each in [*spec.get("initContainers", ()), *spec["containers"]]
    }


def selects(selector: dict, labels: dict) -> bool:
    """Whether a label selector takes a pod with these labels."""
    for rule in selector.get("matchExpressions", ()):
        assert rule["operator"] == "In"
        if labels.get(rule["key"]) not in rule["values"]:
            return False
    return all(labels.get(name) == value for name, value in selector.get("matchLabels", {}).items())


def queries(overlay: str) -> list[str]:
    """What KEDA asks Prometheus."""
    return [
        trigger["metadata"]["query"]
        for resource in of_kind(overlay, "ScaledObject")
        for trigger in resource["spec"]["triggers"]
    ]
