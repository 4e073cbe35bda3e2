"""Writes what is derived from the code: README's tables, JSON Schemas, the OpenAPI description, the examples; and from
what was measured: the table and plots of docs/performance.md.

`python docs/generate.py` writes the files; with `--check` it changes nothing and fails where one is out of date.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.extend(
    str(Path(__file__).resolve().parent.parent / part) for part in (".", "benchmarks", "client", "handlers")
)

from openapi import openapi
from pydantic import BaseModel, TypeAdapter

from benchmarks import figures
from cloudvid.batch.events import BatchEvent
from cloudvid.batch.scenes import EXAMPLE, scene_schema
from cloudvid.cli.options import range_of
from cloudvid_schema.parameters import ImageToVideoParameters, TextToImageParameters
from cloudvid_stages.settings import ImageToVideoSettings, StageSettings, TextToImageSettings
from soak import table

_ROOT = Path(__file__).resolve().parent.parent


def parameter_table(model: type[BaseModel]) -> str:
    """A model's fields as a Markdown table."""
    schema = model.model_json_schema()
    rows = ["| parameter | range | unit | default | meaning |", "|---|---|---|---|---|"]
    names = sorted(schema["properties"], key=lambda name: name not in schema.get("required", []))
    for name in names:
        field = schema["properties"][name]
        default = "required" if name in schema.get("required", []) else f"`{json.dumps(field.get('default'))}`"
        default = "" if default == "`null`" else default
        rows.append(
            f"| `{name}` | {range_of(field, '`')} | {field.get('unit', '')} | {default} | {field['description']} |"
        )
    return "\n".join(rows)


def settings_table(kind: type[StageSettings], shared: bool) -> str:
    """A stage's settings as a Markdown table: those of both stages, or its own."""
    properties = kind.model_json_schema()["properties"]
    rows = ["| setting | values | default | pixels | meaning |", "|---|---|---|---|---|"]
    for name, field in properties.items():
        if (name in StageSettings.model_fields) != shared:
            continue
        default = field.get("default")
        shown = "of the YAML" if name == "model" else f"`{json.dumps(default)}`"
        text = " ".join(field["description"].split())
        effect = field.get("effect", "")
        rows.append(f"| `{name}` | {_values(field)} | {shown} | {effect} | {text} |")
    return "\n".join(rows)


def _values(field: dict[str, Any]) -> str:
    options = [option for option in field.get("anyOf", [field]) if option.get("type") != "null"]
    (value,) = options
    if "enum" in value:
        return ", ".join(f"`{choice}`" for choice in value["enum"])
    kinds = {"string": "text", "array": "list", "object": "table", "boolean": "`true`, `false`"}
    if value["type"] in kinds:
        return kinds[value["type"]]
    least, most = value.get("minimum", value.get("exclusiveMinimum")), value.get("maximum")
    return f"{least} to {most}" if most is not None else f"from {least}" if least else "above 0"


def settings_page() -> str:
    """docs/settings.md."""
    tables = (
        ("Both stages", StageSettings, True),
        ("Text to image (`t2i.yaml`, `CLOUDVID_T2I_*`)", TextToImageSettings, False),
        ("Image to video (`i2v.yaml`, `CLOUDVID_I2V_*`)", ImageToVideoSettings, False),
    )
    sections = [f"## {title}\n\n{settings_table(kind, shared)}\n" for title, kind, shared in tables]
    return "\n".join([(_ROOT / "docs/settings_head.md").read_text(), *sections])


def _with_parts(page: Path, parts: dict[str, str]) -> str:
    """A page with its generated parts as they should be."""
    text = page.read_text()
    for name, part in parts.items():
        begin, end = f"<!-- {name}: written by docs/generate.py -->", f"<!-- end of {name} -->"
        before, found, rest = text.partition(begin)
        _, ended, after = rest.partition(end)
        if not (found and ended):
            raise SystemExit(f"{page.name} has no place for the {name}")
        text = before + "\n\n".join((begin, part, end)) + after
    return text


def performance_parts() -> dict[str, str]:
    """The parts of docs/performance.md: the table of the documented run, and each figure's plot."""
    parts = {"figures": figures.markdown()}
    for number in range(1, 10):
        plot = figures.DOCUMENTED / f"R{number}.svg"
        shown = f"![R{number}](../{plot.relative_to(_ROOT)})" if plot.is_file() else "Not drawn yet."
        parts[f"plot of R{number}"] = shown
    return parts


def reliability_parts() -> dict[str, str]:
    """The table of docs/reliability.md: the last whole run of each case of the soak."""
    results = table.read()
    return {"results": table.markdown(results) if results else "No whole run is on record yet."}


def outputs() -> dict[Path, str]:
    """Every generated file and its text."""
    tables = {
        "t2i parameters": parameter_table(TextToImageParameters),
        "i2v parameters": parameter_table(ImageToVideoParameters),
    }
    return {
        _ROOT / "README.md": _with_parts(_ROOT / "README.md", tables),
        _ROOT / "docs/performance.md": _with_parts(_ROOT / "docs/performance.md", performance_parts()),
        _ROOT / "docs/scene-file.schema.json": json.dumps(scene_schema(), indent=2) + "\n",
        _ROOT / "docs/events.schema.json": json.dumps(TypeAdapter(BatchEvent).json_schema(), indent=2) + "\n",
        _ROOT / "examples/input_scenes.json": EXAMPLE,
        _ROOT / "docs/settings.md": settings_page(),
        _ROOT / "docs/openapi.json": json.dumps(openapi(), indent=2) + "\n",
        _ROOT / "docs/reliability.md": _with_parts(_ROOT / "docs/reliability.md", reliability_parts()),
    }


def main() -> int:
    """Write the files, or with `--check` compare them."""
    parser = argparse.ArgumentParser(description="Write what is derived from the schema.")
    parser.add_argument("--check", action="store_true", help="change nothing, fail where a file is out of date")
    check = parser.parse_args().check
    made = outputs()
    stale = [path for path, text in made.items() if not path.is_file() or path.read_text() != text]
    for path in stale:
        if check:
            print(f"{path.relative_to(_ROOT)} is out of date; `python docs/generate.py` writes it", file=sys.stderr)
        else:
            path.write_text(made[path])
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
