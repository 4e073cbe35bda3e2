"""The least that a process needs before it can serve: import one pipeline's class, load it, say so.

python benchmarks/bare_load.py StableDiffusionPipeline MODEL
"""

import importlib
import sys


def main() -> None:
    """Load the pipeline that the command line names."""
    kind, model = sys.argv[1:]
    getattr(importlib.import_module("diffusers"), kind).from_pretrained(model, local_files_only=True)
    print("ready", flush=True)
    sys.stdin.read()  # a process that ends takes time too, and a worker does not end


if __name__ == "__main__":
    main()
