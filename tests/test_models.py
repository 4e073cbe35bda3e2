"""Checkpoints of the same pipeline families, chosen by a setting: each is made small, saved and loaded as any other."""

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, PNDMScheduler
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPImageProcessor

from cloudvid_schema.protocol import RequestError, TextToImageRequest
from cloudvid_stages.image_to_video import ImageToVideo
from cloudvid_stages.memory import place
from cloudvid_stages.settings import SettingsError
from cloudvid_stages.text_to_image import TextToImage
from demo import tiny
from support.stages import clip, decoded, picture, run


def request(**values):
    return TextToImageRequest(
        **{"prompt": "a lamp", "width": 64, "height": 64, "num_inference_steps": 2, "seed": 1, **values}
    )


def safety_checker(flags_everything):
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
        "projection_dim": 16,
    }
    text = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 99,
        "projection_dim": 16,
    }
    checker = StableDiffusionSafetyChecker(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    for name in ("concept_embeds_weights", "special_care_embeds_weights"):
        getattr(checker, name).data.fill_(-2.0 if flags_everything else 2.0)
    return checker


def with_safety_checker(pipeline, flags_everything):
    pipeline.register_modules(
        safety_checker=safety_checker(flags_everything),
        feature_extractor=CLIPImageProcessor(crop_size=32, size={"shortest_edge": 32}),
    )
    pipeline.register_to_config(requires_safety_checker=True)


def sd_1_5(pipeline):
    """A safety checker, PNDM, epsilon."""
    with_safety_checker(pipeline, flags_everything=False)


def sd_2_1(pipeline):
    """768 pixels, v-prediction."""
    pipeline.scheduler = PNDMScheduler.from_config(pipeline.scheduler.config, prediction_type="v_prediction")
    pipeline.unet.register_to_config(sample_size=96)


def sd_turbo(pipeline):
    """One step, no guidance, Euler with trailing timesteps."""
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")


@pytest.mark.parametrize("family", [sd_1_5, sd_2_1, sd_turbo])
def test_a_stable_diffusion_checkpoint_is_served_as_diffusers_runs_it(tmp_path, family):
    pipeline = tiny.text_to_image()
    family(pipeline)
    pipeline.save_pretrained(tmp_path)
    asked = request(num_inference_steps=1, guidance_scale=0.0) if family is sd_turbo else request()
    output = run(TextToImage.load({"model": str(tmp_path)}, None), asked)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        asked.prompt,
        negative_prompt="",
        width=64,
        height=64,
        num_inference_steps=asked.num_inference_steps,
        guidance_scale=asked.guidance_scale,
        generator=torch.Generator().manual_seed(1),
    ).images[0]
    assert (decoded(output.data) == np.asarray(expected)).all()


def test_a_picture_that_the_safety_checker_blackens_is_an_error(tmp_path):
    pipeline = tiny.text_to_image()
    with_safety_checker(pipeline, flags_everything=True)
    pipeline.save_pretrained(tmp_path)
    with pytest.raises(RequestError) as raised:
        run(TextToImage.load({"model": str(tmp_path)}, None), request())
    assert (raised.value.body.code, raised.value.body.type) == (422, "SafetyChecker")


@pytest.mark.parametrize("kind", ["model", "sequential", "group"])
def test_a_checkpoint_with_a_safety_checker_can_be_offloaded(tmp_path, kind):
    pipeline = tiny.text_to_image()
    with_safety_checker(pipeline, flags_everything=False)
    pipeline.save_pretrained(tmp_path)
    place(TextToImage.load({"model": str(tmp_path)}, None)._pipeline, kind, torch.device("cpu"))


def test_a_checkpoint_without_a_part_names_the_fetching_command(tmp_path):
    tiny.text_to_image().save_pretrained(tmp_path)
    (weights,) = (tmp_path / "text_encoder").glob("*.safetensors")
    weights.unlink()
    with pytest.raises(SettingsError, match="has no safetensors weights in text_encoder/; `make weights` fetches them"):
        TextToImage.load({"model": str(tmp_path)}, None)


@pytest.mark.parametrize("frames", [14, 25])
def test_svd_and_svd_xt_clips_have_their_trained_length(tmp_path, frames):
    pipeline = tiny.image_to_video()
    pipeline.unet.register_to_config(num_frames=frames)
    pipeline.save_pretrained(tmp_path)
    loaded = ImageToVideo.load({"model": str(tmp_path)}, None)
    assert loaded.describe().num_frames == frames
    output = run(loaded, clip(num_frames=None), picture())
    assert (output.frames, output.recipe["parameters"]["num_frames"]) == (frames, frames)


def test_fp16_files_alone_are_loaded_whatever_the_precision(tmp_path):
    tiny.text_to_image().to(torch.float16).save_pretrained(tmp_path, variant="fp16")
    for dtype in ("fp32", "bf16", "fp16"):
        loaded = TextToImage.load({"model": str(tmp_path), "dtype": dtype}, None)
        assert loaded.describe().precision == dtype
        assert run(loaded, request()).data


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("StableDiffusionXLPipeline", "is a StableDiffusionXLPipeline checkpoint; t2i needs a StableDiffusionPipeline"),
        ("FluxPipeline", "is a FluxPipeline checkpoint; t2i needs a StableDiffusionPipeline"),
        ("StableVideoDiffusionPipeline", "is a StableVideoDiffusionPipeline checkpoint; t2i needs a Stable"),
    ],
)
def test_a_checkpoint_of_another_family_is_refused_by_name(tmp_path, name, message):
    tiny.text_to_image().save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    index.write_text(index.read_text().replace('"StableDiffusionPipeline"', f'"{name}"'))
    with pytest.raises(SettingsError, match=message):
        TextToImage.load({"model": str(tmp_path)}, None)
