"""Options that several commands take, declared once: where the server is, and the schema's parameters as flags."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from pydantic import BaseModel

from cloudvid.client import Client
from cloudvid.endpoints.connection import DEFAULT_SERVER

Command = Callable[..., None]
SceneFile = Annotated[Path | None, typer.Argument(metavar="SCENES", help="JSON file of scenes.", show_default=False)]
OutputDir = Annotated[Path, typer.Option("--output-dir", "--output_dir", help="Folder for the pictures and clips.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_SERVER_OPTIONS: dict[str, tuple[Any, Any]] = {
    "server": (
        Annotated[
            str | None,
            typer.Option(
                "--server",
                envvar="CLOUDVID_SERVER",
                help=f"Address of the model server; default: what `make start` runs here, else {DEFAULT_SERVER}.",
            ),
        ],
        None,
    ),
    "t2i_url": (
        Annotated[
            str | None,
            typer.Option("--t2i-url", envvar="CLOUDVID_T2I_URL", help="Address of text to image, where it is another."),
        ],
        None,
    ),
    "i2v_url": (
        Annotated[
            str | None,
            typer.Option(
                "--i2v-url", envvar="CLOUDVID_I2V_URL", help="Address of image to video, where it is another."
            ),
        ],
        None,
    ),
    "management": (
        Annotated[
            str | None,
            typer.Option(
                "--management",
                envvar="CLOUDVID_MANAGEMENT",
                help="Address of the management API; default: the port above the server's.",
            ),
        ],
        None,
    ),
    "token": (
        Annotated[str | None, typer.Option("--token", envvar="CLOUDVID_TOKEN", help="Token for the endpoints.")],
        None,
    ),
    "ca": (
        Annotated[
            Path | None,
            typer.Option(
                "--ca",
                envvar="CLOUDVID_CA",
                exists=True,
                dir_okay=False,
                help="Certificates that vouch for a server's own, where the public ones do not.",
            ),
        ],
        None,
    ),
    "key_file": (
        Annotated[
            Path | None,
            typer.Option(
                "--key-file",
                envvar="CLOUDVID_KEY_FILE",
                help="TorchServe's key_file.json; default: .run/key_file.json, for a server on this machine.",
            ),
        ],
        None,
    ),
}


def takes_client(command: Command) -> Command:
    """Replace a command's parameter `client` with the options that say where the server is."""
    added = {
        name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in _SERVER_OPTIONS.items()
    }

    def run(**values: Any) -> None:
        connection = {name: values.pop(name) for name in _SERVER_OPTIONS}
        command(client=Client(**connection), **values)

    return _with_parameters(command, run, "client", added)


def takes_parameters(model: type[BaseModel], *, positional: str = "") -> Callable[[Command], Command]:
    """Replace a command's parameter `parameters` with one flag for each field of a schema model.

    The command gets a dictionary of the flags that were given: ranges are checked by the model itself, in one wording.
    """
    added = {}
    for name, field in model.model_fields.items():
        if name == positional:
            continue
        kinds = [kind for kind in get_args(field.annotation) or (field.annotation,) if kind in (int, float, str)]
        option = typer.Option(f"--{name.replace('_', '-')}", help=field.description, show_default=False)
        added[name] = inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[(kinds[0] if kinds else str) | None, option],
        )

    def decorate(command: Command) -> Command:
        def run(**values: Any) -> None:
            given = {name: values.pop(name) for name in added}
            given = {name: value for name, value in given.items() if value is not None}
            command(parameters=given, **values)

        return _with_parameters(command, run, "parameters", added)

    return decorate


def _with_parameters(command: Command, run: Command, removed: str, added: dict[str, inspect.Parameter]) -> Command:
    signature = inspect.signature(command)
    kept = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in signature.parameters.values()
        if parameter.name != removed
    ]
    parameters = [*kept, *added.values()]
    functools.update_wrapper(run, command)
    del run.__wrapped__  # type: ignore[attr-defined]  # typer would follow it to the original signature
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
