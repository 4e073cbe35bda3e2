"""Runs one TorchServe with both archives: `python deploy/server.py serve|start|stop|with|java`."""

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from java import JavaError, java_home
from profiles import PROFILES, ModelsError, choose_models
from torchserve_process import PORTS, STAGES, Server, ServerError, free_port, running_in

_ROOT = Path(__file__).resolve().parent.parent
_RUN_DIR = _ROOT / ".run"


@contextlib.contextmanager
def _signals_as_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP end this program as Ctrl-C does, so that what it started is stopped."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # What nohup ignores stays ignored.
    wanted = [sign for sign in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(sign) is not signal.SIG_IGN]
    before = {sign: signal.signal(sign, interrupt) for sign in wanted}
    try:
        yield
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)


@contextlib.contextmanager
def running(server: Server, model_store: Path, foreground: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """A server for the time of the block; whatever ends the block ends the server."""
    with _signals_as_interrupt():
        process = server.spawn(model_store, foreground)  # outside: what it refuses to start is not ours to stop
        try:
            yield process
        finally:
            for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a second Ctrl-C must not leave half of it
                signal.signal(sign, signal.SIG_IGN)
            server.stop()


def _start(server: Server, model_store: Path) -> int:
    with _signals_as_interrupt():
        process = server.spawn(model_store)
        try:
            _wait_until_it_listens(server, process)
        except BaseException:  # Ctrl-C too: no half of a server stays
            server.stop()
            raise
    wait = "cloudvid wait"
    if server.run_dir != _RUN_DIR:
        wait += f" --server {server.url} --key-file {shlex.quote(str(server.run_dir / 'key_file.json'))}"
    print(f"server on {server.url}, log {server.log} (models still load: `{wait}` says when they are ready)")
    return 0


def _wait_until_it_listens(server: Server, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise ServerError(server.last_words(process.returncode))
        if server.listens():
            return
        time.sleep(0.1)
    raise ServerError(f"the server did not listen within 60 s; see {server.log}")


def _stop(run_dir: Path, port: int | None) -> int:
    server = running_in(run_dir)
    if server and port not in (None, server.port):
        raise ServerError(f"the server in {run_dir} is on port {server.port}, not {port}")
    print("stopped" if Server(run_dir, 0).stop() else "no server was running")
    return 0


def _serve(server: Server, model_store: Path) -> int:
    with running(server, model_store, foreground=True) as process:
        return process.wait()


def _with(server: Server, model_store: Path, command: list[str]) -> int:
    """Run a client while the server runs; where the server ends by itself, so does the client."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CLOUDVID_")}
    environment = kept | {
        "CLOUDVID_SERVER": server.url,
        "CLOUDVID_MANAGEMENT": f"http://127.0.0.1:{server.port + 1}",
        "CLOUDVID_KEY_FILE": str(server.run_dir.resolve() / "key_file.json"),
    }
    with running(server, model_store) as process:
        client = subprocess.Popen(command, env=environment)
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return client.wait(timeout=0.5)
                if process.poll() is not None:
                    client.terminate()
                    raise ServerError(server.last_words(process.returncode))
        except KeyboardInterrupt:
            # Ctrl-C reached the client too, and it ends by itself; a SIGTERM to this program alone did not.
            for seconds in (2, 10):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    client.wait(timeout=seconds)
                    return 130
                client.send_signal(signal.SIGINT)
            client.kill()
            return 130


def _once(port: int, stages: tuple[str, ...], model_store: Path, client: list[str]) -> int:
    """`with`: a server in a folder of its own, which is left behind only where something failed."""
    _RUN_DIR.mkdir(exist_ok=True, mode=0o700)
    server = Server(Path(tempfile.mkdtemp(prefix="once-", dir=_RUN_DIR)), port, stages)
    code = 1
    try:
        code = _with(server, model_store, client)
    finally:
        if code in (0, 2, 130):  # 2: the scene file, about which the server's log says nothing
            shutil.rmtree(server.run_dir)
        else:
            print(f"the server's log: {server.log}", file=sys.stderr)
    return code


def _port(text: str) -> int:
    port = int(text)
    last = 65536 - PORTS
    if not 0 < port <= last:
        raise argparse.ArgumentTypeError(f"must be 1 to {last}, got {port}")
    return port


def main() -> int:
    """Carry out one command; the exit code is the server's or the client's."""
    parser = argparse.ArgumentParser(description="Run TorchServe with both archives.")
    parser.add_argument("action", choices=["serve", "start", "stop", "with", "java"])
    parser.add_argument("--run-dir", type=Path, default=_RUN_DIR, help="for serve, start and stop")
    parser.add_argument(
        "--port", type=_port, help="default 8080; for `with` a free one; the five above it are used too"
    )
    parser.add_argument(
        "--stage", choices=STAGES, action="append", help="serve this stage alone (repeatable; default: both)"
    )
    parser.add_argument("--profile", choices=PROFILES, default="auto", help="which models, where none is named")
    parser.add_argument("--model-store", type=Path, default=_ROOT / "model_store")
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options = parser.parse_args(sys.argv[1:cut])
    client = sys.argv[cut + 1 :]
    if bool(client) != (options.action == "with"):
        parser.error("`with` takes `-- COMMAND`, what to run while the server runs; the other actions do not")
    try:
        if options.action == "java":
            print(java_home())
            return 0
        if options.action == "stop":
            return _stop(options.run_dir.absolute(), options.port)
        stages = tuple(stage for stage in STAGES if stage in (options.stage or STAGES))
        os.environ.update(choose_models(options.profile, stages))
        port = options.port or (free_port() if options.action == "with" else 8080)
        if options.action == "with":
            return _once(port, stages, options.model_store, client)
        server = Server(options.run_dir.absolute(), port, stages)
        return (_start if options.action == "start" else _serve)(server, options.model_store)
    except (ServerError, JavaError, ModelsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
