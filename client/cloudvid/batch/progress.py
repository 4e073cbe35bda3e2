"""A scene in a batch: what is requested, how far it is, and why a stage has to run."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from cloudvid.batch.manifest import Record, request_digest
from cloudvid.batch.scenes import Scene
from cloudvid_schema.files import sha256
from cloudvid_schema.protocol import Request, Stage


@dataclass(frozen=True)
class Asked:
    """A scene's request of one stage."""

    scene: Scene
    stage: Stage
    request: Request
    file: str
    """Name of the file that the stage makes."""

    @classmethod
    def of(cls, scene: Scene, stage: Stage, embed_recipe: bool = True) -> "Asked":
        """What a scene asks of a stage."""
        if stage is Stage.T2I:
            return cls(scene, stage, scene.t2i_request(embed_recipe), scene.picture_name)
        return cls(scene, stage, scene.i2v_request(embed_recipe), scene.video_name)

    @cached_property
    def digest(self) -> str:
        """Digest of the request."""
        return request_digest(self.request)

    def with_recipe(self, embed_recipe: bool) -> "Asked":
        """The same request, with or without a recipe in the file."""
        if self.request.embed_recipe == embed_recipe:
            return self
        return replace(self, request=self.request.model_copy(update={"embed_recipe": embed_recipe}))

    def reason_to_run(self, record: Record, folder: Path, model: str | None, is_quick: bool = False) -> str | None:
        """Why the stage has to run, or None if its file exists, intact and as requested.

        Args:
            record: the scene's line in the manifest.
            folder: where the file would be.
            model: identity of the model that would make the file, if known.
            is_quick: trust the record, without a look at the file.
        """
        entry = record.entry(self.stage)
        if entry is None or entry.file != self.file:  # the record names another file, e.g. after a renaming
            return "new"
        if not entry.is_of(self.digest):
            return "parameters changed"
        if model is not None and entry.model != model:
            return "model changed"
        if self.stage is Stage.I2V and record.t2i and entry.picture_sha256 != record.t2i.sha256:
            return "picture changed"
        try:
            is_intact = is_quick or sha256(folder / entry.file) == entry.sha256
        except OSError:
            return "file missing"
        return None if is_intact else "file damaged"

    def changes(self, record: Record) -> tuple[str, ...]:
        """The parameters that differ from those of the file on record, numbers with both values: `fps 8 -> 10`."""
        entry = record.entry(self.stage)
        before, now = entry.request if entry else {}, self.request.model_dump(mode="json")
        return tuple(
            f"{name} {before[name]} -> {value}"
            if isinstance(before.get(name), int | float) and value is not None
            else name
            for name, value in now.items()
            if name not in before or before[name] != value
        )


@dataclass
class SceneProgress:
    """A scene of a running batch."""

    scene: Scene
    asked: dict[Stage, Asked]
    end: Literal["done", "skipped", "failed", "cancelled"] | None = None
    """How it ended; None while there is something to do."""
    has_run: bool = False
    """Whether this batch has sent a request for it."""
    is_redrawn: bool = False
    """Whether its picture was requested a second time, because the first one changed on the disk."""
    error: str | None = None
    """Why it has failed or was cancelled."""

    @classmethod
    def of(cls, scene: Scene, embed_recipe: bool) -> "SceneProgress":
        """A scene at the start of a batch."""
        return cls(scene, {stage: Asked.of(scene, stage, embed_recipe) for stage in Stage})
