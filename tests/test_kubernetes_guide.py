"""docs/kubernetes.md: its commands are run as far as that goes without a cluster; the rest must name what there is."""

import os
import re
import shlex
import subprocess

import pytest
import yaml

from support import ROOT
from support.manifests import FOLDER, OVERLAYS, kubectl, of_kind, render

GUIDE = (ROOT / "docs/kubernetes.md").read_text()
TEXT = GUIDE.replace("\\\n", " ")
COMMANDS = re.findall(r"(?:^\s*\$ |`)(kubectl [^`\n]+)", TEXT, re.MULTILINE)
CREATE = [command for command in COMMANDS if " create " in command]
APPLY = [command for command in COMMANDS if " apply -k " in command]
OTHERS = [command for command in COMMANDS if command not in CREATE + APPLY]


def run(command, folder):
    return kubectl(*shlex.split(command)[1:], cwd=folder, env=os.environ | {"KUBECONFIG": os.devnull})


@pytest.fixture
def folder(tmp_path):
    """A repository, an overlay of one's own as the guide shows it, and the files of the secrets."""
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    (example,) = re.findall(r"```yaml\n( *)# my-cluster/kustomization.yaml\n(.*?)```", GUIDE, re.DOTALL)
    mine = tmp_path / "my-cluster/kustomization.yaml"
    mine.parent.mkdir()
    mine.write_text(example[1].replace("../deploy", os.path.relpath(ROOT / "deploy", mine.parent)))
    for name in ("tokens", "HF_TOKEN"):
        (tmp_path / name).write_text("0123456789abcdef\n")
    certificate = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x"]
    subprocess.run(
        [*certificate, "-keyout", "tls.key", "-out", "tls.crt"], cwd=tmp_path, capture_output=True, check=True
    )
    return tmp_path


@pytest.mark.parametrize("command", CREATE)
def test_every_command_that_creates_is_one_that_kubectl_takes(command, folder):
    done = run(f"{command} --dry-run=client -o yaml", folder)
    assert done.returncode == 0, done.stderr
    made = yaml.safe_load(done.stdout)
    if made["kind"] == "Secret":
        assert made["metadata"]["namespace"] == "cloudvid"
        used = {
            "cloudvid-tokens": {"tokens"},
            "cloudvid-hub": {"HF_TOKEN"},
            "cloudvid-tls": {"tls.crt", "tls.key"},
        }
        assert set(made["data"]) == used[made["metadata"]["name"]]


@pytest.mark.parametrize("command", APPLY)
def test_every_folder_that_is_applied_can_be_rendered(command, folder):
    done = run(re.sub(r" apply -k ", " kustomize ", command), folder)
    assert (done.returncode, done.stderr) == (0, "")
    images = re.findall(r"image: (\S+)", done.stdout)
    if "my-cluster" in command:
        assert {image.rpartition(":")[0] for image in images} == {"registry.example.com/cloudvid"}


def test_every_other_command_names_what_there_is():
    assert len(OTHERS) > 5
    there = {f"{each['kind'].lower()}/{each['metadata']['name']}" for each in render("base")}
    for command in OTHERS:
        for name in re.findall(r"\b(?:job|deployment)/\S+", command):
            assert name in there
        if " logs " in command and " -c " in command:
            (part,) = re.findall(r" -c (\S+)", command)
            for deployment in of_kind("base", "Deployment"):
                assert part in {each["name"] for each in deployment["spec"]["template"]["spec"]["containers"]}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_object_is_a_secret_and_named_ones_are_explained(overlay):
    assert not of_kind(overlay, "Secret")
    named = re.findall(r"secretName: (\S+)|secretKeyRef:\s+key: \S+\s+name: (\S+)", yaml.safe_dump_all(render(overlay)))
    for name in map("".join, named):
        assert re.search(rf"create secret (generic|tls) {name}\b", GUIDE)


def test_the_guide_names_every_overlay():
    for overlay in OVERLAYS:
        assert f"| `{overlay}` |" in GUIDE
    folders = {str(path.parent.relative_to(FOLDER)) for path in FOLDER.rglob("kustomization.yaml")}
    parts = {"base/stage", "base/t2i", "base/i2v", "overlays/kserve/predictors", "components/baked-weights"}
    assert folders == set(OVERLAYS) | parts
