"""What the driver says of a GPU (NVML): memory, use, temperature, power."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import pynvml  # of nvidia-ml-py
import torch

GAUGES: dict[str, Callable[[Any], float]] = {
    "gpu_memory_used_bytes": lambda handle: pynvml.nvmlDeviceGetMemoryInfo(handle).used,
    "gpu_memory_total_bytes": lambda handle: pynvml.nvmlDeviceGetMemoryInfo(handle).total,
    "gpu_utilization_percent": lambda handle: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu,
    "gpu_temperature_celsius": lambda handle: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
    "gpu_power_watts": lambda handle: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
}
"""What can be asked of a GPU, by the names of the gauges."""


def gpu_gauges(device: torch.device) -> dict[str, float]:
    """Gauges of a GPU, by name: those that its driver has; of a CPU, none."""
    found: dict[str, float] = {}
    if device.type == "cuda":
        for name, read in GAUGES.items():
            with contextlib.suppress(pynvml.NVMLError):
                found[name] = float(read(_handle(device.index or 0)))
    return found


@functools.cache
def _handle(index: int) -> Any:
    """NVML's handle. By the device's UUID: CUDA may number the devices in another way (CUDA_VISIBLE_DEVICES)."""
    pynvml.nvmlInit()
    uuid = torch.cuda.get_device_properties(index).uuid
    try:
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except pynvml.NVMLError_NotFound:
        return pynvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}")
