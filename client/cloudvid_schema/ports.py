"""How far above TorchServe's first port the others lie."""

MANAGEMENT, METRICS, EXPORTER = 1, 2, 5
PORTS = EXPORTER + 1
"""Consecutive ports: inference, management, metrics, two for gRPC, and the exporter's."""
