"""Places for doctor to look at, and what it finds there."""

from cloudvid import Client
from cloudvid.server.doctor import Place

GIB = 2**30


def place(tmp_path, url="http://gpu.example:8080", **options):
    """A folder and a client."""
    client = options.pop("client", None) or Client(url, token="t")
    return Place(client.server, folder=tmp_path, **options)


def levels(findings):
    return [finding.level for finding in findings]
