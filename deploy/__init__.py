"""Starting and stopping TorchServe with both stages, and what runs beside and in front of it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("t2i", "i2v")


class DeployError(RuntimeError):
    """What was asked for cannot be done; the message says why, and what to do."""
