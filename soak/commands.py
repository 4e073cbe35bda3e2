"""The client's commands as the cases run them."""

import os
import sys
from pathlib import Path

from conftest import Running

from soak import ROOT


def clean_environment() -> dict[str, str]:
    """Our environment, less what is about another server; the client is this tree's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CLOUDVID_")}
    return kept | {"PYTHONPATH": str(ROOT / "client")}


def client_command(running: Running, *arguments: str) -> list[str]:
    """A command of the client against a real server."""
    connection = ["--server", running.url, "--key-file", str(running.key_file)]
    return [sys.executable, "-m", "cloudvid.cli", *arguments, *connection]


def run_command(url: str, scene_file: Path, folder: Path, *options: str) -> list[str]:
    """`cloudvid run` against a server that has both stages and its management API at one address."""
    connection = ["--server", url, "--management", url, "--token", "t"]
    command = [sys.executable, "-m", "cloudvid.cli", "run", str(scene_file), "--output-dir", str(folder)]
    return [*command, *connection, "--quiet", *options]
