"""The container's entry point, `cloudvid-container` in the image.

    cloudvid-container [OPTION...]       the whole job: every scene file of input_data, into output_data/NAME/, with the
                                         options of `cloudvid run`
    cloudvid-container serve [t2i|i2v]   TorchServe with both stages or one, on loopback; options of deploy/server.py
    cloudvid-container proxy OPTION...   nginx in front of it, on port 8443; options of deploy/proxy.py
    cloudvid-container weights           fetch or make the models, then end (PROFILE defaults to real)
    cloudvid-container health [URL...]   0 if each stage that runs here, or each URL, is ready
    cloudvid-container COMMAND ...       `cloudvid COMMAND ...`

PROFILE (auto, demo, real, tiny) chooses the models. Exit codes are `cloudvid run`'s; of several files the worst one.
"""

import argparse
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from cloudvid.batch.scenes import read_scenes
from cloudvid.endpoints.errors import CloudVidError
from cloudvid_schema.ports import EXPORTER
from cloudvid_schema.processes import interrupts
from deploy import ROOT, STAGES, DeployError
from deploy.profiles import PROFILES, choose_models

_INPUT, _OUTPUT, _MODELS, _RUN = (ROOT / name for name in ("input_data", "output_data", "models", ".run"))
_PYTHON = [sys.executable, "-m"]
_CLOUDVID = str(Path(sys.executable).with_name("cloudvid"))
_FILES = "_files"  # the loop over scene files, as what `deploy/server.py with` runs beside the server
_WAIT = "1800"  # s for the models to load
_HEALTH_SECONDS = 8


class UsageError(Exception):
    """The container was started in a way that cannot work; the message says what to change."""


def _exec(command: Sequence[str]) -> NoReturn:
    """Become the command, so that signals reach it without a process between."""
    sys.stdout.flush()
    os.execv(command[0], list(command))  # noqa: S606


def _profile(default: str = "auto") -> str:
    profile = os.environ.get("PROFILE") or default
    if profile not in PROFILES:
        raise UsageError(f"PROFILE must be one of {', '.join(PROFILES)}, got {profile!r}")
    return profile


def _check_writable(folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(
            f"user {os.getuid()}:{os.getgid()} cannot write to {folder}: mount a folder that this user owns,"
            " or start the container as its owner (--user UID:GID)"
        )


def _whole_job(options: list[str]) -> int:
    """Check every scene file, then render those that have no fault, with one server for all of them."""
    files = [file for file in sorted(_INPUT.glob("*.json")) if not file.name.startswith(".") and file.is_file()]
    if not files:
        raise UsageError(f"no scene file: {_INPUT} holds no *.json; mount a folder of them (-v FOLDER:{_INPUT})")
    _check_writable(_OUTPUT)
    profile = _profile()
    whole, code = [], 0
    for file in files:
        try:
            read_scenes(file)
            whole.append(str(file))
        except CloudVidError as error:
            code = 2
            for line in str(error).splitlines():
                print(f"error: {file.name}: {line}", file=sys.stderr)
    if not whole:
        return code
    loop = [*_PYTHON, "deploy.container", _FILES, str(code), *options, "--", *whole]
    return _run([*_PYTHON, "deploy.server", "with", "--profile", profile, "--", *loop])


def _render(arguments: list[str]) -> int:
    """`CODE [OPTION...] -- FILE...`: render one file after the other; the worst exit code, of CODE and theirs."""
    cut = arguments.index("--")
    code, options, files = int(arguments[0]), arguments[1:cut], arguments[cut + 1 :]
    for number, file in enumerate(map(Path, files), start=1):
        folder = _OUTPUT / file.stem
        print(f"{file.name} -> {folder} (file {number} of {len(files)})", flush=True)
        last = _run([_CLOUDVID, "run", str(file), "--output-dir", str(folder), "--wait", _WAIT, *options])
        code = max(code, last)
        if last in (3, 130):  # without its server, or interrupted, the next one would fare no better
            if left := [Path(name).name for name in files[number:]]:
                print(f"not begun: {', '.join(left)}", file=sys.stderr)
            break
    return code


def _run(command: list[str]) -> int:
    """The exit code of a command; an interrupt ends it with its whole group."""
    child = None
    try:
        with interrupts():
            child = subprocess.Popen(command, process_group=0)  # otherwise a Ctrl-C would reach it twice
            code = child.wait()
            return code if code >= 0 else 128 - code
    except KeyboardInterrupt:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        if child:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGTERM)
            child.wait()
        return 130


def _serve(arguments: list[str]) -> NoReturn:
    parser = argparse.ArgumentParser(prog="cloudvid-container serve", add_help=False)
    parser.add_argument("stage", nargs="?", choices=STAGES)
    parser.add_argument("--run-dir", type=Path, default=_RUN)
    options, others = parser.parse_known_args(arguments)
    run_dir = options.run_dir
    run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    _check_writable(run_dir)
    # The run folder is left to the keys: it may be a small volume in memory, shared with the proxy. TorchServe's logs
    # grow to gigabytes, and its workers write each clip to a file.
    apart = Path(tempfile.mkdtemp(prefix="cloudvid-"))
    for name in ("logs", "tmp"):
        link = run_dir / name
        if link.is_symlink():  # of an earlier container
            link.unlink()
        if not link.exists():
            (apart / name).mkdir(mode=0o700)
            link.symlink_to(apart / name)
    stage = ["--stage", options.stage] if options.stage else []
    _exec([*_PYTHON, "deploy.server", "serve", *stage, "--profile", _profile(), "--run-dir", str(run_dir), *others])


def _weights(arguments: list[str]) -> int:
    argparse.ArgumentParser(prog="cloudvid-container weights").parse_args(arguments)
    _check_writable(_MODELS)
    choose_models(_profile(default="real"))
    return 0


def _health(urls: list[str]) -> int:
    """0 where every URL answers 200; without URLs those of the servers' exporters."""
    if not urls:
        records = [*_RUN.glob("server.json"), *_RUN.glob("*/server.json")]
        ports = [json.loads(record.read_text())["port"] + EXPORTER for record in records]
        urls = [f"http://127.0.0.1:{port}/ready" for port in ports]
    if not urls:
        print("no server has started here")
        return 1
    for url in urls:
        try:
            with urllib.request.urlopen(url, timeout=_HEALTH_SECONDS) as answer:  # noqa: S310 - the operator's own URL
                print(answer.read().decode())
        except (OSError, http.client.HTTPException) as error:
            print(f"{url}: {error}")
            return 1
    return 0


_ACTIONS: dict[str, Callable[[list[str]], int]] = {
    "serve": _serve,
    "proxy": lambda options: _exec([*_PYTHON, "deploy.proxy", "--listen", "0.0.0.0:8443", *options]),
    "weights": _weights,
    "health": _health,
    _FILES: _render,
}


def main(arguments: list[str]) -> int:
    """Carry out what the container was started for; the exit code."""
    first = arguments[0] if arguments else ""
    try:
        if first in ("-h", "--help"):
            print(__doc__)
            return 0
        if first in _ACTIONS:
            return _ACTIONS[first](arguments[1:])
        if not arguments or first.startswith("-"):
            return _whole_job(arguments)
        _exec([_CLOUDVID, *arguments])
    except (UsageError, DeployError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 3
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
