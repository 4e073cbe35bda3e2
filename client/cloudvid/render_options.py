"""How a batch is carried out."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from cloudvid_schema.protocol import Stage


@dataclass(frozen=True)
class RenderOptions:
    """How a batch is carried out."""

    force: bool = False
    """Make everything again, whatever is there."""
    only: Collection[str] = ()
    """Ids of the scenes to make; empty for all."""
    fail_fast: bool = False
    """Stop at the first scene that fails."""
    retries: int = 4
    """How often a request is sent again in all; waiting for a busy or absent server is not counted."""
    patience: float = 900.0
    """Seconds of nothing but `busy`, or of no answer at all, after which a request is given up."""
    embed_recipe: bool = True
    """Whether the files carry their recipe."""
    concurrency: Mapping[Stage, int] = field(default_factory=dict)
    """Requests at once for a stage whose workers cannot be counted; default: as a proxy before the server counts the
    workers of one host, else 1."""
