"""The command `run`."""

import contextlib
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from cloudvid.batch import render
from cloudvid.cli.options import OutputDir, SceneFile, takes_client
from cloudvid.cli.tally import Tally
from cloudvid.cli.views import JsonView, LiveView, PlainView, QuietView, View
from cloudvid.cli.waiting import said_once
from cloudvid.client import Client
from cloudvid.errors import CloudVidError, UnusableFolder
from cloudvid.events import BatchFinished
from cloudvid.render_options import RenderOptions
from cloudvid.scenes import Scene, read_scenes
from cloudvid_schema.protocol import Stage

_MANY = 64
_AGAIN_SECONDS = 0.5
_BUSY_SECONDS = 3.0
_BUSY = "waiting: the server's workers are busy, perhaps with requests of before; which models they have, they say then"
_SILENT_SECONDS = 10.0  # in which a server that was started with the run, as `make run` does, is mostly ready


@takes_client
def run(
    client: Client,
    *,
    scenes: SceneFile = None,
    output_dir: OutputDir = Path("output"),
    force: Annotated[bool, typer.Option("--force", help="Make everything again, whatever is there.")] = False,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="ID", help="Only this scene; may be repeated.")
    ] = None,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first scene that fails.")] = False,
    retries: Annotated[int, typer.Option("--retries", min=0, help="How often a request is sent again.")] = 4,
    patience: Annotated[
        float, typer.Option("--patience", min=0, help="Seconds to wait for a server that is busy or away.")
    ] = 900.0,
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, help="Seconds without a sign of life after which a request has failed.")
    ] = 3600.0,
    wait: Annotated[float, typer.Option("--wait", min=0, help="Seconds to wait for a server that is not ready.")] = 0.0,
    t2i_concurrency: Annotated[
        int | None,
        typer.Option("--t2i-concurrency", min=1, max=_MANY, help="Pictures at once, where workers cannot be counted."),
    ] = None,
    i2v_concurrency: Annotated[
        int | None,
        typer.Option("--i2v-concurrency", min=1, max=_MANY, help="Clips at once, where workers cannot be counted."),
    ] = None,
    metadata: Annotated[
        bool, typer.Option("--metadata/--no-metadata", help="Whether the files carry their recipe.")
    ] = True,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the paths of the files alone.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print events as JSON lines; see docs/events.schema.json.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json_file", hidden=True)] = None,
) -> None:
    """Make the picture and the clip of every scene in a file; go on where an earlier run stopped."""
    path = scenes or json_file
    if path is None or (scenes and json_file):
        raise typer.BadParameter("name one file of scenes", param_hint="SCENES")
    batch = read_scenes(path)
    only = only or []
    if unknown := sorted(set(only) - {scene.id for scene in batch}):
        raise typer.BadParameter(f"no scene has the id {unknown[0]!r}", param_hint="--only")
    options = RenderOptions(
        force=force,
        only=only,
        fail_fast=fail_fast,
        retries=retries,
        patience=patience,
        embed_recipe=metadata,
        concurrency={
            stage: count for stage, count in zip(Stage, (t2i_concurrency, i2v_concurrency), strict=True) if count
        },
    )
    client.timeout = timeout
    client.wait_until_ready(timeout=wait, on_wait=(lambda error: None) if quiet else said_once(_SILENT_SECONDS))
    late = threading.Timer(_BUSY_SECONDS, print, (_BUSY,), {"file": sys.stderr, "flush": True})
    if not quiet:
        late.start()
    code = _render(batch, client, output_dir, options, _view(quiet, json), on_begin=late.cancel)
    if code:
        raise typer.Exit(code)


def _view(quiet: bool, json: bool) -> View:
    if json:
        return JsonView()
    if quiet:
        return QuietView()
    console = Console()
    return LiveView(console) if console.is_terminal else PlainView(sys.stdout)


def _render(
    scenes: list[Scene],
    client: Client,
    output_dir: Path,
    options: RenderOptions,
    view: View,
    *,
    on_begin: Callable[[], None],
) -> int:
    finished: BatchFinished | None = None
    tally = Tally()
    events = render(scenes, client, output_dir, options)
    try:
        with _signals_as_interrupt():
            for event in events:
                on_begin()
                tally.take(event)
                view.show(event)
                if isinstance(event, BatchFinished):
                    finished = event
    except KeyboardInterrupt:
        events.close()
        view.show(tally.finished("interrupted"))
        view.close()
        print(f"interrupted; to go on:\n  {resume_command(sys.argv)}", file=sys.stderr)
        return 130
    except UnusableFolder:
        raise
    except CloudVidError:
        view.close()
        print(f"to go on:\n  {resume_command(sys.argv)}", file=sys.stderr)
        raise
    finally:
        on_begin()
        view.close()
    if finished is None or finished.failed:
        view.close()
        print(f"to try what failed again:\n  {resume_command(sys.argv)}", file=sys.stderr)
        return 1
    return 0


def resume_command(argv: list[str]) -> str:
    """The command that goes on where this one stopped: the same, without its secret.

    Less `--force` too, which would begin anew: what it had not come to stays as it was.
    """
    words = ["cloudvid"]
    arguments = iter(argv[1:])
    for word in arguments:
        if word == "--token":
            next(arguments, None)
        elif word != "--force" and not word.startswith("--token="):
            words.append(word)
    return shlex.join(words)


@contextlib.contextmanager
def _signals_as_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP end a batch as Ctrl-C does: in order, and resumable.

    An exception that a signal raises inside a callback of the interpreter's own (of a weak reference, of an object's
    end) is lost. So it is raised again until somebody has caught it.
    """
    is_over = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        if is_over:
            return
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
        if sys.exc_info()[0] is None:  # else the batch is being left
            raise KeyboardInterrupt

    def unraisable(lost: "sys.UnraisableHookArgs") -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            hook(lost)

    # What nohup ignores stays ignored.
    signs = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    wanted = [sign for sign in signs if signal.getsignal(sign) is not signal.SIG_IGN]
    before = {sign: signal.signal(sign, interrupt) for sign in [*wanted, signal.SIGALRM]}
    hook, sys.unraisablehook = sys.unraisablehook, unraisable
    try:
        yield
    finally:
        is_over = True  # a signal from here on would set the timer again, whose own is the end of a process
        signal.setitimer(signal.ITIMER_REAL, 0)
        for sign, handler in before.items():
            signal.signal(sign, handler)
        sys.unraisablehook = hook
