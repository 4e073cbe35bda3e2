"""A t2i checkpoint whose UNet is wide, in fp16 with random weights: `wide_checkpoint.py DIRECTORY WIDTH`.

With a width of 1504 its weights are about a gigabyte; all else is the tiny model's. The attention has as many heads as
that has, of more channels.
"""

import argparse
import sys
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from full_size import fill

from cloudvid_stages import tiny


def write(directory: Path, width: int) -> int:
    """Save the pipeline in a directory; the bytes of its UNet's weights."""
    pipeline = tiny.text_to_image()
    small = pipeline.unet.config
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config({**small, "block_out_channels": (width // 2, width)})
    pipeline.register_modules(unet=fill(unet.eval(), "cpu"))
    pipeline.save_pretrained(directory, variant="fp16")
    return sum(parameter.numel() * parameter.element_size() for parameter in pipeline.unet.parameters())


def main() -> int:
    """Write what the command line asks for, and print the bytes."""
    parser = argparse.ArgumentParser(description="Make a wide text-to-image checkpoint.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("width", type=int)
    options = parser.parse_args()
    print(write(options.directory, options.width))
    return 0


if __name__ == "__main__":
    sys.exit(main())
