"""`index.html` in the output folder: every scene's picture, clip, prompt, parameters and status at a glance.

It links to the files beside it, needs no network and no scripts, and escapes everything that comes from a scene file.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from urllib.parse import quote

from jinja2 import Environment, PackageLoader

from cloudvid.batch.estimate import duration
from cloudvid.batch.manifest import Entry, Record
from cloudvid.batch.progress import Asked, SceneProgress
from cloudvid.batch.toys import toy_note
from cloudvid.endpoints.errors import Cancelled
from cloudvid_schema.protocol import Stage

PAGE = "index.html"
_ENVIRONMENT = Environment(
    loader=PackageLoader("cloudvid", "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
_MANY = 12  # scenes; with more, parameters are folded


class Gallery:
    """The gallery of a batch, in the order of the scenes. Only cards that have changed are rendered again."""

    def __init__(self, scenes: Sequence[SceneProgress], record: Callable[[str], Record]) -> None:
        self._scenes, self._record = scenes, record
        self._cards: dict[str, _Card] = {}

    def changed(self, progress: SceneProgress) -> None:
        """Note that a scene's record or state has changed."""
        self._cards.pop(progress.scene.id, None)

    def page(self, seconds_left: float | None = None) -> bytes:
        """The HTML document; of a batch that runs with the time that it still takes."""
        for progress in self._scenes:
            if (scene := progress.scene.id) not in self._cards:
                self._cards[scene] = _Card(progress, self._record(scene), is_open=len(self._scenes) <= _MANY)
        cards = [self._cards[progress.scene.id] for progress in self._scenes]
        counts = Counter(card.status for card in cards)
        models = sorted({model for card in cards for model in card.models})
        page = _ENVIRONMENT.get_template("gallery.html")
        left = None if seconds_left is None else duration(seconds_left)
        return page.render(cards=cards, counts=counts, models=models, note=toy_note(models), left=left).encode()


class _Card:
    """A scene's part of the page."""

    def __init__(self, progress: SceneProgress, record: Record, is_open: bool) -> None:
        scene, picture, clip = progress.scene, record.t2i, record.i2v
        entries = {stage: record.entry(stage) for stage in Stage}
        is_current = all(_is_current(progress.asked[stage], entry) for stage, entry in entries.items())
        is_done = is_current and picture and clip and clip.picture_sha256 == picture.sha256
        trouble = progress.error or (record.failure.message if record.failure and not is_done else None)
        is_cancelled = record.failure is not None and record.failure.error == Cancelled.__name__
        self.status = ("cancelled" if is_cancelled else "failed") if trouble else "done" if is_done else "to do"
        self.models = [entry.model for entry in entries.values() if entry]
        self.html = _ENVIRONMENT.get_template("card.html").render(
            id=scene.id,
            prompt=scene.scene_desc,
            motion=scene.motion_desc,
            status=self.status,
            error=trouble,
            warnings=[text for entry in entries.values() if entry for text in entry.warnings or ()],
            picture=quote(scene.picture_name) if picture else None,
            clip=quote(scene.video_name) if is_done else None,
            parameters={stage: _parameters(progress.asked[stage], entries[stage]) for stage in Stage},
            is_open=is_open,
        )


def _is_current(asked: Asked, entry: Entry | None) -> bool:
    """Whether a record matches the scene, with or without recipes in the files."""
    if entry is None or entry.file != asked.file:
        return False
    return entry.is_of(asked.with_recipe(entry.request.get("embed_recipe", True)).digest)


def _parameters(asked: Asked, entry: Entry | None) -> dict[str, str]:
    request = entry.request | {"seed": entry.seed} if entry else asked.request.model_dump(mode="json")
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in request.items()
        if value not in (None, "") and name not in ("prompt", "metadata", "embed_recipe")
    }
