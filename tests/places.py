"""Machines for doctor to look at: what is installed there, and what its programs say."""

from cloudvid import Client
from cloudvid.doctor import Place

GIB = 2**30
VERSIONS = {"torch": "2.13.0", "torchserve": "0.12.0", "imageio-ffmpeg": "0.8.1"}


def place(tmp_path, versions=VERSIONS, says=(), programs=(), url="http://gpu.example:8080", **options):
    """A machine on which each program that is run says what `says` has for a word of its command."""

    def run(command):
        text = " ".join(map(str, command))
        return next((answer for word, answer in says if word in text), (None, "No such file or directory"))

    programs = dict(programs)
    options = {
        "memory": lambda: 64 * GIB,
        "free_disk": lambda path: 100 * GIB,
        "environment": {"HOME": str(tmp_path)},
    } | options
    return Place(
        options.pop("client", None) or Client(url, token="t"), folder=tmp_path, run=run, which=programs.get,
        installed=dict(versions).get, **options,
    )  # fmt: skip


def levels(findings):
    return [finding.level for finding in findings]
