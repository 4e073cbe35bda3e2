"""`index.html` in the output folder: every scene's poster, clip, prompt, parameters and status, at a glance.

It links to the files beside it, needs no network and no script, and escapes everything that a scene file holds.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader

from cloudvid.decisions import file_name, request_of
from cloudvid.manifest import Entry, Record, request_digest
from cloudvid.outputs import Disk, write_file
from cloudvid.scenes import Scene
from cloudvid.toys import toy_note
from cloudvid_schema.protocol import Stage

NAME = "index.html"
_TEMPLATE = Environment(
    loader=PackageLoader("cloudvid", "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
).get_template("gallery.html")


def write_gallery(
    folder: Path, scenes: Sequence[Scene], records: Mapping[str, Record], failed: Mapping[str, str], disk: Disk
) -> Path:
    """Write the gallery of a batch.

    Args:
        folder: the output folder.
        scenes: in the order in which they are shown.
        records: what the manifest knows.
        failed: why scenes of this run failed, by id.
        disk: how files are written.

    Raises:
        OutputError: it cannot be written.
    """
    cards = [_card(scene, records.get(scene.id), failed.get(scene.id)) for scene in scenes]
    counts = {status: sum(card["status"] == status for card in cards) for status in ("done", "failed", "to do")}
    models = sorted({model for card in cards for model in card["models"]})  # type: ignore[attr-defined]
    text = _TEMPLATE.render(cards=cards, counts=counts, models=models, note=toy_note(models))
    return write_file(folder / NAME, text.encode(), disk)


def _card(scene: Scene, record: Record | None, error: str | None) -> dict[str, object]:
    entries = {stage: record.entry(stage) if record else None for stage in Stage}
    picture, clip = entries[Stage.T2I], entries[Stage.I2V]
    is_current = all(entry is not None and _is_current(scene, stage, entry) for stage, entry in entries.items())
    is_done = is_current and picture is not None and clip is not None and clip.picture_sha256 == picture.sha256
    return {
        "id": scene.id,
        "prompt": scene.scene_desc,
        "motion": scene.motion_desc,
        "status": "failed" if error else "done" if is_done else "to do",
        "error": error,
        "warnings": [text for entry in entries.values() if entry for text in entry.warnings or ()],
        "picture": quote(scene.picture_name) if picture else None,
        "clip": quote(scene.video_name) if is_done else None,
        "parameters": {stage: _parameters(scene, stage, entries[stage]) for stage in Stage},
        "models": [entry.model for entry in entries.values() if entry],
    }


def _is_current(scene: Scene, stage: Stage, entry: Entry) -> bool:
    """Whether a record is of what the scene asks for now, with or without its recipe in the file."""
    request = request_of(scene, stage, bool(entry.request.get("embed_recipe", True)))
    return entry.file == file_name(scene, stage) and entry.request_sha256 == request_digest(request)


def _parameters(scene: Scene, stage: Stage, entry: Entry | None) -> dict[str, str]:
    request = entry.request if entry else request_of(scene, stage, embed_recipe=True).model_dump(mode="json")
    shown = {
        name: value
        for name, value in request.items()
        if value not in (None, "") and name not in ("prompt", "metadata", "embed_recipe")
    }
    if entry:
        shown["seed"] = entry.seed
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in shown.items()}
