"""How a batch is carried out."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from cloudvid_schema.protocol import Stage


@dataclass(frozen=True)
class RenderOptions:
    """How a batch is carried out."""

    force: bool = False
    """Make everything again."""
    only: Collection[str] = ()
    """Ids of the scenes to make; empty for all."""
    fail_fast: bool = False
    """Stop at the first scene that fails."""
    retries: int = 4
    """How often a request is sent again in total; waiting for a busy or absent server does not count."""
    patience: float = 900.0
    """Seconds to wait for a server that is busy or absent before a request is given up."""
    embed_recipe: bool = True
    """Whether the files carry their recipe."""
    concurrency: Mapping[Stage, int] = field(default_factory=dict)
    """Concurrent requests for a stage whose workers cannot be counted; default: the workers that a proxy counts on one
    host, else 1."""
