"""Which requests a batch made, and which are on record: by seed, which each has of its own, and stage."""

import re
from pathlib import Path

from cloudvid.manifest import read_records
from cloudvid_schema.protocol import Stage


def seed_of(body: bytes) -> int:
    """The seed that a request's body asks for; the last, after that of a clip's picture."""
    return int(re.findall(rb'"seed":(\d+)', body)[-1])


def recorded(folder: Path) -> set[tuple[int, Stage]]:
    """Seed and stage of each file that the manifest knows."""
    records, _ = read_records(folder)
    return {(entry.seed, stage) for record in records.values() for stage in Stage if (entry := record.entry(stage))}
