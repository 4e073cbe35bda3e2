"""Options that several commands take, declared once: where the server is, and the schema's parameters as flags."""

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from pydantic import BaseModel

from cloudvid.client import Client
from cloudvid.endpoints.connection import DEFAULT_SERVER, is_local

Command = Callable[..., None]
SceneFile = Annotated[Path | None, typer.Argument(metavar="SCENES", help="JSON file of scenes.", show_default=False)]
OutputDir = Annotated[Path, typer.Option("--output-dir", "--output_dir", help="Folder for the pictures and clips.")]
LeaveRunning = Annotated[
    bool, typer.Option("--leave-running", help="When interrupted, let the server finish what it has in hand.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _optional(name: str, kind: type, help: str, **more: Any) -> inspect.Parameter:
    """An option that may be left out."""
    option = typer.Option(f"--{name.replace('_', '-')}", help=help, **more)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _server_option(name: str, help: str, kind: type = str, **more: Any) -> inspect.Parameter:
    return _optional(name, kind, help, envvar=f"CLOUDVID_{name.upper()}", **more)


_SERVER_OPTIONS = [
    _server_option(
        "server", f"Address of the model server; default: what `make start` runs here, else {DEFAULT_SERVER}."
    ),
    _server_option("t2i_url", "Address of the text-to-image server, if it is not --server."),
    _server_option("i2v_url", "Address of the image-to-video server, if it is not --server."),
    _server_option("management", "Address of the management API; default: the port above the server's."),
    _server_option("token", "Token for the endpoints."),
    _server_option(
        "ca", "CA bundle for the server's certificate; default: the public CAs.", Path, exists=True, dir_okay=False
    ),
    _server_option(
        "key_file", "TorchServe's key_file.json; default: .run/key_file.json, for a server on this machine.", Path
    ),
]


def _takes(
    removed: str, added: Sequence[inspect.Parameter], make: Callable[[dict[str, Any]], Any]
) -> Callable[[Command], Command]:
    """A decorator that replaces a command's parameter with options, and makes its value of theirs."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def run(**values: Any) -> None:
            values[removed] = make({option.name: values.pop(option.name) for option in added})
            command(**values)

        taken = dict(inspect.signature(command).parameters)
        del taken[removed]
        options = [*(each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in taken.values()), *added]
        run.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
        run.__annotations__ = {option.name: option.annotation for option in options}
        return run

    return decorate


def _client(given: dict[str, Any]) -> Client:
    """A client of these options. A key file that an environment names is for the server on this machine."""
    context: typer.Context = given.pop("context")
    named = ("server", "t2i_url", "i2v_url", "management", "key_file")
    sources = [context.get_parameter_source(name) for name in named if given[name] is not None]
    is_explicit = all(source is not None and source.name == "COMMANDLINE" for source in sources)
    client = Client(**given, keys_leave_host=is_explicit)
    plain = [url for url in client.server.urls.values() if url.startswith("http:") and not is_local(url)]
    if plain and (given["token"] or (given["key_file"] and is_explicit)):
        print(
            f"note: the token and all pictures go to {plain[0]} unencrypted; use https:// if you can", file=sys.stderr
        )
    return client


_CONTEXT = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
takes_client = _takes("client", [*_SERVER_OPTIONS, _CONTEXT], _client)
"""Replaces a command's parameter `client` with the options that say where the server is."""


def takes_parameters(model: type[BaseModel], *, positional: str = "") -> Callable[[Command], Command]:
    """Replace a command's parameter `parameters` with one flag for each field of a schema model.

    The command gets a dictionary of the flags, None for those that were not given. Ranges are checked by the model
    itself, in one wording.
    """
    added = []
    for name, field in model.model_fields.items():
        kinds = [kind for kind in get_args(field.annotation) or (field.annotation,) if kind in (int, float, str)]
        if name != positional:
            added.append(_optional(name, kinds[0] if kinds else str, field.description or "", show_default=False))
    return _takes("parameters", added, dict)
