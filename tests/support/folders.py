"""Output folders, compared and described."""

import json
from pathlib import Path

from cloudvid import Scene, Stage, parse_scenes
from cloudvid.batch.manifest import read_records
from cloudvid.batch.media import check_whole
from cloudvid_schema.files import sha256

TYPES = {".png": "image/png", ".mp4": "video/mp4"}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file's bytes by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def pictures_and_clips(folder: Path) -> dict[str, bytes]:
    """Every picture's and clip's bytes by name."""
    return {name: data for name, data in contents(folder).items() if name.endswith(tuple(TYPES))}


def no_half_file_has_a_final_name(folder: Path) -> bool:
    """Whether every picture and clip is whole; raises where one is not."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.suffix in TYPES and not path.name.startswith("."):
            check_whole(path.read_bytes(), TYPES[path.suffix])
    return True


def what_is_on_record_is_on_the_disk(folder: Path) -> bool:
    """Whether every file that the manifest names is there and has its digest; raises where one is not."""
    records, _ = read_records(folder)
    for record in records.values():
        for entry in filter(None, map(record.entry, Stage)):
            assert sha256(folder / entry.file) == entry.sha256, f"{entry.file} is on record"
    return True


def leftovers(folder: Path) -> list[str]:
    """Unfinished files of writes that failed."""
    return [path.name for path in folder.glob(".*.part")]


def scenes(count: int, **t2i) -> list[dict]:
    """Small scenes."""
    t2i = {"width": 64, "height": 64, "num_inference_steps": 2, **t2i}
    return [
        {
            "id": f"s{index}",
            "scene_desc": f"scene {index}",
            "t2i_params": dict(t2i),
            "i2v_params": {"num_inference_steps": 2},
        }
        for index in range(count)
    ]


def write_scenes(path: Path, count: int) -> Path:
    path.write_text(json.dumps(scenes(count)))
    return path


def batch(count: int) -> list[Scene]:
    """Scenes whose clips take a second or so."""
    t2i = {"width": 64, "height": 64, "num_inference_steps": 6}
    i2v = {"num_frames": 6, "num_inference_steps": 8, "decode_chunk_size": 2}
    document = [
        {"id": f"s{index}", "scene_desc": f"scene {index}", "t2i_params": t2i, "i2v_params": i2v}
        for index in range(count)
    ]
    return parse_scenes(document)
