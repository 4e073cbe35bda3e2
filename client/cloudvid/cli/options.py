"""Options that several commands take, declared once: where the server is, and the schema's parameters as flags."""

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from pydantic import BaseModel

from cloudvid.batch.scenes import Scene
from cloudvid.client import Client
from cloudvid.endpoints.connection import DEFAULT_SERVER, is_local

Command = Callable[..., None]
SCENES = Path("scenes.json")
"""What `init` writes, and the commands on scene files read by default."""
SceneFile = Annotated[
    Path | None,
    typer.Argument(metavar="SCENES", help=f"JSON file of scenes; default: {SCENES}, if it exists.", show_default=False),
]
OutputDir = Annotated[Path, typer.Option("--output-dir", help="Folder for the pictures and clips.")]
Only = Annotated[list[str] | None, typer.Option("--only", metavar="ID", help="Only this scene; may be repeated.")]
LeaveRunning = Annotated[
    bool, typer.Option("--leave-running", help="When interrupted, let the server finish what it has in hand.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def scene_path(given: Path | None) -> Path:
    """The scene file that a command means."""
    if given is None and not SCENES.exists():
        raise typer.BadParameter(
            f"name a file of scenes: there is no {SCENES} here (`cloudvid init` writes one)", param_hint="SCENES"
        )
    return given or SCENES


def check_only(only: Sequence[str] | None, scenes: Sequence[Scene]) -> None:
    """Refuse ids that no scene has."""
    if unknown := sorted(set(only or ()) - {scene.id for scene in scenes}):
        raise typer.BadParameter(f"no scene has the id {unknown[0]!r}", param_hint="--only")


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
        "server",
        f"Address of the model server; default: what `make start` runs here or ran last, else {DEFAULT_SERVER}.",
    ),
    _server_option("t2i_url", "Address of the text-to-image server, if it is not --server."),
    _server_option("i2v_url", "Address of the image-to-video server, if it is not --server."),
    _server_option("management", "Address of the management API; default: the port above the server's."),
    _server_option("token", "Token for the endpoints."),
    _server_option(
        "ca", "CA bundle for the server's certificate; default: the public CAs.", Path, exists=True, dir_okay=False
    ),
    _server_option("key_file", "TorchServe's key_file.json; default: that of the server found on this machine.", Path),
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


def range_of(schema: dict[str, Any], quote: str = "") -> str:
    """What a parameter may be, from its JSON Schema: `64 to 2048, multiple of 8`.

    Args:
        quote: stands around a choice.
    """
    value = next(option for option in schema.get("anyOf", [schema]) if option.get("type") != "null")
    if "enum" in value:
        return ", ".join(f"{quote}{choice}{quote}" for choice in value["enum"])
    if value["type"] == "string":
        return f"{value.get('minLength', 0)} to {value['maxLength']}"
    text = f"{value['minimum']:g} to {value['maximum']}" if value["type"] == "integer" else ""
    text = text or f"{value['minimum']:g} to {value['maximum']:g}"
    return text + (f", multiple of {value['multipleOf']}" if "multipleOf" in value else "")


def _help(schema: dict[str, Any]) -> str:
    unit = f"{schema['unit']}: " if "unit" in schema else ""
    default = f"; default: {schema['default']}" if schema.get("default") not in (None, "") else ""
    return f"{schema['description']}  [{unit}{range_of(schema)}{default}]"


def takes_parameters(model: type[BaseModel], *, positional: str = "") -> Callable[[Command], Command]:
    """Replace a command's parameter `parameters` with one flag for each field of a schema model.

    The command gets a dictionary of the flags, None for those that were not given. Ranges are checked by the model
    itself, in one wording.
    """
    added, schemas = [], model.model_json_schema()["properties"]
    for name, field in model.model_fields.items():
        kinds = [kind for kind in get_args(field.annotation) or (field.annotation,) if kind in (int, float, str)]
        if name != positional:
            added.append(_optional(name, kinds[0] if kinds else str, _help(schemas[name]), show_default=False))
    return _takes("parameters", added, dict)
