"""Runs a TorchServe with both archives: `python -m deploy.server serve|start|stop|with|java`."""

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

from cloudvid_schema.ports import PORTS
from cloudvid_schema.processes import interrupts
from cloudvid_schema.run_folder import point_to, read_record
from deploy import ROOT, STAGES, DeployError
from deploy.draining import drain, in_hand
from deploy.environment import check_names
from deploy.java import java_home
from deploy.profiles import PROFILES, choose_models
from deploy.torchserve import RUN_DIR, Server, free_port, running_in

_KEPT_RUNS = 4  # folders of `with` that have failed


@contextlib.contextmanager
def running(server: Server, model_store: Path, foreground: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server during the block; it stops however the block ends."""
    with interrupts():
        # Outside of the try: a server that it finds running is not ours to stop.
        process = server.spawn(model_store, foreground)
        try:
            yield process
        finally:
            # A second Ctrl-C must not leave half of it running; neither must the timer that raises the first one again.
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
                signal.signal(number, signal.SIG_IGN)
            server.stop()


def _start(server: Server, model_store: Path) -> int:
    with interrupts():
        process = server.spawn(model_store)
        try:
            for _ in range(600):
                if process.poll() is not None:
                    raise DeployError(server.last_words(process.returncode))
                if server.listens():
                    break
                time.sleep(0.1)
            else:
                raise DeployError(f"the server did not listen within 60 s; see {server.log}")
        except BaseException:  # Ctrl-C included
            server.stop()
            raise
    _point_to(server)
    wait = "cloudvid wait"
    if server.run_dir != RUN_DIR:
        wait += f" --server {server.url} --key-file {shlex.quote(str(server.run_dir / 'key_file.json'))}"
    print(f"server on {server.url}, log {server.log} (the models are loading: `{wait}` waits for them)")
    return 0


def _point_to(server: Server) -> None:
    """Let the user's clients find the server from any folder."""
    try:
        point_to(server.run_dir)
    except OSError as error:
        found = f"the server is found from its own folder only: {error.filename} cannot be written ({error.strerror})"
        print(f"note: {found}", file=sys.stderr)


def _port_before(run_dir: Path) -> int | None:
    """The port of a server that died in this folder: clients may still wait for it there."""
    before = read_record(run_dir)
    if before and not running_in(run_dir):
        print(f"port {before.port}, as before: the server that was process {before.pid} died", flush=True)
        return before.port
    return None


def _stop(run_dir: Path, port: int | None, seconds: float) -> str:
    """Stop a server, after so many seconds at most for what it has in hand. Returns what became of it."""
    server = running_in(run_dir)
    if server and port not in (None, server.port):
        raise DeployError(f"the server in {run_dir} is on port {server.port}, not {port}")
    left = drain(lambda: in_hand(run_dir, server.port), seconds) if server else None
    stopped = "stopped" if Server(run_dir, 0).stop() else "no server was running"
    remedy = "" if seconds else "; `make stop DRAIN=600` waits for them up to 600 s"
    return f"{stopped}, with requests in hand: {left}{remedy}" if left else stopped


def _with(server: Server, model_store: Path, command: list[str]) -> int:
    """Run a client while the server runs; if the server ends by itself, so does the client."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("CLOUDVID_")},
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
                    raise DeployError(server.last_words(process.returncode))
        except KeyboardInterrupt:
            # Ctrl-C has reached the client too, and it ends by itself; a SIGTERM to this process has not.
            for seconds in (2, 10):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    client.wait(timeout=seconds)
                    return 130
                client.send_signal(signal.SIGINT)
            client.kill()
            return 130


def _once(port: int, stages: tuple[str, ...], model_store: Path, client: list[str]) -> int:
    """`with`: a server in a temporary folder, which is only kept if something has failed."""
    RUN_DIR.mkdir(exist_ok=True, mode=0o700)
    with contextlib.suppress(FileNotFoundError):  # another one tidies, too
        for old in sorted(RUN_DIR.glob("once-*"), key=lambda folder: folder.stat().st_mtime)[:-_KEPT_RUNS]:
            if not running_in(old):
                shutil.rmtree(old, ignore_errors=True)
    server = Server(Path(tempfile.mkdtemp(prefix="once-", dir=RUN_DIR)), port, stages)
    code = 1
    try:
        code = _with(server, model_store, client)
    finally:
        if code in (0, 2, 130):  # 2: a faulty scene file, about which the server's log says nothing
            shutil.rmtree(server.run_dir)
        else:
            print(f"the server's log: {server.log}", file=sys.stderr)
    return code


def _exit_code(code: int) -> int:
    """Of `serve`: a SIGTERM from outside, as of `make stop`, is an orderly end; other signals count as failures."""
    code = code if code >= 0 else 128 - code
    return 0 if code == 128 + signal.SIGTERM else code


def _port(text: str) -> int:
    last = 65536 - PORTS
    if not text.isdecimal() or not 0 < int(text) <= last:
        raise argparse.ArgumentTypeError(f"must be 1 to {last}, got {text}")
    return int(text)


def main() -> int:
    """Carry out a command; the exit code is the server's or the client's."""
    parser = argparse.ArgumentParser(description="Run TorchServe with both archives.")
    parser.add_argument("action", choices=["serve", "start", "stop", "with", "java"])
    parser.add_argument("--run-dir", type=Path, default=RUN_DIR, help="for serve, start and stop")
    parser.add_argument("--drain", type=float, default=0.0, help="for stop: seconds to wait for requests in hand")
    parser.add_argument(
        "--port",
        type=_port,
        help="default: that of a server which died here, else 8080, for `with` a free one; the next five are used too",
    )
    parser.add_argument(
        "--stage", choices=STAGES, action="append", help="serve only this stage (repeatable; default: both)"
    )
    parser.add_argument("--profile", choices=PROFILES, default="auto", help="which models to use, unless they are set")
    parser.add_argument("--model-store", type=Path, default=ROOT / "model_store")
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options = parser.parse_args(sys.argv[1:cut])
    client = sys.argv[cut + 1 :]
    if bool(client) != (options.action == "with"):
        parser.error("`with` needs `-- COMMAND`, which runs while the server runs; the other actions take none")
    run_dir = options.run_dir.absolute()
    try:
        if options.action in ("java", "stop"):
            print(java_home() if options.action == "java" else _stop(run_dir, options.port, options.drain))
            return 0
        stages = tuple(stage for stage in STAGES if stage in (options.stage or STAGES))
        check_names(os.environ)
        os.environ.update(choose_models(options.profile, stages))
        if options.action == "with":
            return _once(options.port or free_port(), stages, options.model_store, client)
        server = Server(run_dir, options.port or _port_before(run_dir) or 8080, stages)
        if options.action == "start":
            return _start(server, options.model_store)
        with running(server, options.model_store, foreground=True) as process:
            _point_to(server)
            return _exit_code(process.wait())
    except DeployError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
