"""The peers' services, each a process group of its own."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import requests
from stand import ONE_THREAD, ROOT, Stand, environment, free_port

from cloudvid import Stage

PEERS = ("LitServe", "FastAPI")
_READY_SECONDS = 180.0


def _command(peer: str, port: int, workers: int) -> list[str]:
    if peer == "LitServe":
        return ["peers.litserve_service", str(port), str(workers)]
    options = ["--host", "127.0.0.1", "--port", str(port), "--workers", str(workers), "--log-level", "warning"]
    return ["uvicorn", "peers.fastapi_service:app", *options]


@contextlib.contextmanager
def service(stand: Stand, peer: str, stage: Stage, workers: int = 1) -> Iterator[str]:
    """The address of a peer's service for the time of the block; it may still be loading."""
    port = free_port()
    path = os.pathsep.join(str(ROOT / name) for name in ("benchmarks", "client", "handlers"))
    variables = {**ONE_THREAD, "PYTHONPATH": path, "STAGE": stage, "MODEL": str(stand.models[stage])}
    with (stand.folder / f"{peer}-{stage}.log").open("ab") as log, environment(variables):
        process = subprocess.Popen(
            [sys.executable, "-m", *_command(peer, port, workers)],
            cwd=stand.new_folder("run"),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(peer: str, url: str, workers: int = 1) -> None:
    """Return once every worker of a service has loaded its stage.

    LitServe says that they have; of uvicorn's processes each answers with its own id, on a connection of its own.

    Raises:
        TimeoutError: they have not within three minutes.
    """
    began, answers = time.monotonic(), set()
    while time.monotonic() - began < _READY_SECONDS:
        with contextlib.suppress(requests.ConnectionError, requests.ReadTimeout):
            answer = requests.get(f"{url}/health", timeout=10)
            if answer.ok:
                answers.add(answer.text)
        if len(answers) >= (1 if peer == "LitServe" else workers):
            return
        time.sleep(0.1)
    raise TimeoutError(f"{peer} on {url} does not come up")
