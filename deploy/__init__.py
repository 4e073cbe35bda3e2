"""Starting and stopping TorchServe with both stages, and what runs beside and in front of it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("t2i", "i2v")
MANAGEMENT, METRICS, EXPORTER = 1, 2, 5
"""How far above TorchServe's first port these lie."""
PORTS = EXPORTER + 1
"""Consecutive ports: inference, management, metrics, two for gRPC, and the exporter's."""


class DeployError(RuntimeError):
    """What was asked for cannot be done; the message says why, and what to do."""
