"""Training: every part of the demo pair from nothing, on a CPU or a CUDA GPU."""
