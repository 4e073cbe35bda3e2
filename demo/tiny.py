"""Tiny pipelines for tests of the machinery: the real classes with few random weights, made in seconds.

    python -m demo.tiny DIRECTORY

writes `cloudvid-tiny-t2i` and `cloudvid-tiny-i2v`, ordinary diffusers directories. They make noise, but
in the same way as the real models: VAE factor 8, CLIP's byte-level tokenizer, PNDM and Euler schedulers. The weights
come from a fixed seed, so the same versions make the same files.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableVideoDiffusionPipeline,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from diffusers.utils.logging import disable_progress_bar
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)
from transformers.utils.logging import disable_progress_bar as disable_other_progress_bar

from cloudvid_schema.protocol import TINY_MODEL, Stage
from cloudvid_stages.digests import write_list

_SEED = 0
_DOWN = ("DownEncoderBlock2D",) * 4
_UP = ("UpDecoderBlock2D",) * 4


def byte_characters() -> list[str]:
    """GPT-2's printable stand-in for each byte: itself where it is printable, else a character from U+0100 on."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in kept else chr(next(others)) for byte in range(256)]


def _tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer with a vocabulary of single bytes: every prompt has tokens, no merge is learned."""
    characters = byte_characters()
    tokens = [*characters, *(f"{c}</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def text_to_image() -> StableDiffusionPipeline:
    """A `StableDiffusionPipeline` of about a million random weights."""
    torch.manual_seed(_SEED)
    tokenizer = _tokenizer()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
        cross_attention_dim=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=_DOWN,
        up_block_types=_UP,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=512,
        mid_block_add_attention=False,
    )
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def image_to_video() -> StableVideoDiffusionPipeline:
    """A `StableVideoDiffusionPipeline` of a few million random weights, trained for no number of frames: 14."""
    torch.manual_seed(_SEED)
    image_encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=32,
            projection_dim=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=224,  # the pipeline resizes to 224 whatever the encoder was made for
            patch_size=56,
        )
    )
    unet = UNetSpatioTemporalConditionModel(
        sample_size=64,
        num_frames=14,
        in_channels=8,
        out_channels=4,
        block_out_channels=(32, 64, 64, 64),
        down_block_types=("DownBlockSpatioTemporal",) * 3 + ("CrossAttnDownBlockSpatioTemporal",),
        up_block_types=("CrossAttnUpBlockSpatioTemporal",) + ("UpBlockSpatioTemporal",) * 3,
        layers_per_block=1,
        transformer_layers_per_block=1,
        num_attention_heads=(2, 4, 4, 4),
        cross_attention_dim=32,
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=96,
    )
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32, 32, 32),
        down_block_types=_DOWN,
        layers_per_block=1,
        latent_channels=4,
        sample_size=768,
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        interpolation_type="linear",
        prediction_type="v_prediction",
        sigma_max=700.0,
        sigma_min=0.002,
        steps_offset=1,
        timestep_spacing="leading",
        timestep_type="continuous",
        use_karras_sigmas=True,
    )
    return StableVideoDiffusionPipeline(
        vae=vae,
        image_encoder=image_encoder,
        unet=unet,
        scheduler=scheduler,
        feature_extractor=CLIPImageProcessor(crop_size=224, size={"shortest_edge": 224}),
    )


def write(directory: Path) -> dict[Stage, Path]:
    """Save both pipelines below a directory, each as a whole or not at all; one that is there is kept."""
    made = {}
    directory.mkdir(parents=True, exist_ok=True)
    for stage, make in ((Stage.T2I, text_to_image), (Stage.I2V, image_to_video)):
        target = directory / f"{TINY_MODEL}-{stage}"
        if not target.is_dir():
            half = Path(tempfile.mkdtemp(prefix=".half-", dir=directory))
            try:
                make().save_pretrained(half, safe_serialization=True)
                write_list(half)
                half.rename(target)
            except OSError:
                if not target.is_dir():  # else another server was quicker, with the same weights
                    raise
            finally:
                shutil.rmtree(half, ignore_errors=True)
        made[stage] = target
    return made


def main() -> int:
    """Write both pipelines to the directory named on the command line."""
    parser = argparse.ArgumentParser(description="Make the tiny pipelines.")
    parser.add_argument("directory", type=Path)
    disable_progress_bar()
    disable_other_progress_bar()
    for stage, path in write(parser.parse_args().directory).items():
        print(f"{stage}: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
