"""The two models in their true sizes with random weights: what they cost in memory and time, without a download.

    PYTHONPATH=client:handlers:tests python -m support.full_size DIRECTORY [t2i] [i2v]

writes `full-size-t2i` (2.6 GB) and `full-size-i2v` (4.5 GB), ordinary diffusers directories of the `fp16` variant. What
they make is noise, and it costs what the real thing costs. One that is there is kept.
"""

import argparse
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from diffusers.utils.logging import disable_progress_bar
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.utils.logging import disable_progress_bar as disable_other_progress_bar

from cloudvid_schema.protocol import ImageToVideoRequest, Stage, TextToImageRequest
from demo import tiny
from support.stages import picture

disable_progress_bar()
disable_other_progress_bar()
_SEED = 0
_WIDTHS = {"block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2, "cross_attention_dim": 1024}
_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 768,
}


@dataclass(frozen=True)
class Case:
    """A picture or a clip to be made."""

    stage: Stage
    width: int
    height: int
    steps: int
    frames: int = 1

    def __str__(self) -> str:
        frames = f"×{self.frames}" if self.stage == Stage.I2V else ""
        return f"{self.stage} {self.width}×{self.height}{frames}, {self.steps} steps"

    @property
    def size(self) -> str:
        """As the setting `warm_up` has it."""
        return f"{self.width}x{self.height}" + (f"x{self.frames}" if self.stage == Stage.I2V else "")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the pixels."""
        return self.frames, self.height, self.width, 3

    def request(self, steps: int) -> tuple[TextToImageRequest | ImageToVideoRequest, bytes | None]:
        """A request of the server's defaults in all else, and its picture; always the same."""
        asked = {"width": self.width, "height": self.height, "num_inference_steps": steps, "seed": 7}
        if self.stage == Stage.T2I:
            return TextToImageRequest(prompt="a lighthouse at dawn", **asked), None
        return ImageToVideoRequest(num_frames=self.frames, **asked), picture((self.width, self.height))

    @property
    def unet_calls(self) -> int:
        """PNDM calls the UNet once more than there are steps."""
        return self.steps + (self.stage == Stage.T2I)


RECKONED = {  # TFLOP of a step, of the decoding and in all, reckoned apart from this program
    Case(Stage.T2I, 512, 512, 30): (1.609, 2.51, 52.5),
    Case(Stage.T2I, 768, 512, 30): (2.593, 3.80, 84.3),
    Case(Stage.I2V, 1024, 576, 25, 25): (159.9, 173.6, 4174.0),
    Case(Stage.I2V, 768, 512, 25, 25): (99.7, 114.7, 2610.0),
}


def _text_to_image() -> dict[str, nn.Module]:
    """stabilityai/stable-diffusion-2-1-base."""
    heads = (5, 10, 20, 20)  # by a misnomer that diffusers keeps
    unet = UNet2DConditionModel(sample_size=64, attention_head_dim=heads, use_linear_projection=True, **_WIDTHS)
    vae = AutoencoderKL(up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=32, **_VAE)
    text_encoder = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=23,
        num_attention_heads=16,
        hidden_act="gelu",
        projection_dim=512,
    )
    return {"unet": unet, "vae": vae, "text_encoder": CLIPTextModel(text_encoder)}


def _image_to_video() -> dict[str, nn.Module]:
    """stabilityai/stable-video-diffusion-img2vid-xt."""
    unet = UNetSpatioTemporalConditionModel(
        sample_size=96,
        num_frames=25,
        num_attention_heads=(5, 10, 20, 20),
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=768,
        **_WIDTHS,
    )
    image_encoder = CLIPVisionConfig(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=16,
        image_size=224,
        patch_size=14,
        hidden_act="gelu",
        projection_dim=1024,
    )
    vae = AutoencoderKLTemporalDecoder(**_VAE)
    return {"unet": unet, "vae": vae, "image_encoder": CLIPVisionModelWithProjection(image_encoder)}


def parts(stage: Stage) -> dict[str, nn.Module]:
    """A stage's networks on the meta device: shapes without weights."""
    with torch.device("meta"):
        networks = _text_to_image() if stage == Stage.T2I else _image_to_video()
    # The temporal layers' mixing factors are made by a constructor that knows no default device.
    return {name: network.to("meta").eval() for name, network in networks.items()}


def work(case: Case) -> dict[str, float]:
    """TFLOP (two operations a multiply-add) of a `step` with guidance, of the `decode`, and of the `whole` case."""
    networks = parts(case.stage)
    w, h = case.width // 8, case.height // 8

    def shaped(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    unet, vae = networks["unet"], networks["vae"]
    picture = shaped(1, 3, case.height, case.width)
    if case.stage == Stage.T2I:
        pieces = {
            "encode": lambda: networks["text_encoder"](shaped(2, 77, dtype=torch.long)),
            "step": lambda: unet(shaped(2, 4, h, w), 0, shaped(2, 77, 1024)),
            "decode": lambda: vae.decode(shaped(1, 4, h, w)),
        }
    else:
        pieces = {
            "encode": lambda: (networks["image_encoder"](shaped(1, 3, 224, 224)), vae.encode(picture)),
            "step": lambda: unet(shaped(2, case.frames, 8, h, w), 0, shaped(2, 1, 1024), shaped(2, 3)),
            "decode": lambda: vae.decode(shaped(case.frames, 4, h, w), num_frames=case.frames),
        }
    counted = {}
    for name, piece in pieces.items():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            piece()
        counted[name] = counter.get_total_flops() / 1e12
    encode, step, decode = counted.values()
    return {"step": step, "decode": decode, "whole": encode + case.unet_calls * step + decode}


@torch.no_grad()
def fill(network: nn.Module, device: str) -> nn.Module:
    """Weights in fp16 that keep every layer's output about as large as its input, so that fp16 does not overflow."""
    network = network.half().to_empty(device=device)
    generator = torch.Generator(device).manual_seed(_SEED)
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.fill_(name.endswith("weight"))  # a norm's is 1, each bias 0
    return network


def write(directory: Path, stage: Stage, device: str = "cpu") -> Path:
    """Save a stage's pipeline below a directory, as a whole or not at all; one that is there is kept.

    The weights are drawn on the device, and differ from those of another kind of device.
    """
    target = directory / f"full-size-{stage}"
    if not target.is_dir():
        directory.mkdir(parents=True, exist_ok=True)
        half = Path(tempfile.mkdtemp(prefix=".half-", dir=directory))
        try:
            # Tokenizer, picture processor and scheduler are those of the tiny pipeline: the real ones' settings.
            pipeline = tiny.text_to_image() if stage == Stage.T2I else tiny.image_to_video()
            pipeline.register_modules(**{name: fill(part, device) for name, part in parts(stage).items()})
            pipeline.save_pretrained(half, variant="fp16")
            half.rename(target)
        finally:
            shutil.rmtree(half, ignore_errors=True)
    return target


def main() -> int:
    """Write the stages named on the command line."""
    parser = argparse.ArgumentParser(description="Make full-size pipelines of random weights.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("stages", nargs="*", type=Stage, default=list(Stage), metavar="t2i|i2v")
    options = parser.parse_args()
    for stage in options.stages:
        print(f"{stage}: {write(options.directory, stage)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
