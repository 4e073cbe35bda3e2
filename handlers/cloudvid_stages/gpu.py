"""What the driver says of a GPU (NVML): memory, use, temperature, power."""

import functools
from typing import Any

import pynvml  # of nvidia-ml-py
import torch


def gpu_gauges(device: torch.device) -> dict[str, float]:
    """Gauges of a GPU, by name; empty for a CPU, or where the driver does not say."""
    if device.type != "cuda":
        return {}
    try:
        handle = _handle(device.index or 0)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        return {
            "gpu_memory_used_bytes": float(memory.used),
            "gpu_memory_total_bytes": float(memory.total),
            "gpu_utilization_percent": float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu),
            "gpu_temperature_celsius": float(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)),
            "gpu_power_watts": pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        }
    except pynvml.NVMLError:
        return {}


@functools.cache
def _handle(index: int) -> Any:
    """NVML's handle. By the device's UUID: CUDA may number the devices in another way (CUDA_VISIBLE_DEVICES)."""
    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(index).uuid}")
