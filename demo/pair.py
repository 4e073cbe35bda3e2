"""The pair as ordinary diffusers directories: put together from its trained parts."""

import shutil
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableVideoDiffusionPipeline

from cloudvid_schema.protocol import DEMO_MODEL, Stage
from cloudvid_stages.digests import VOCABULARY, write_list
from demo.captions import vocabulary
from demo.training import image_to_video, text_to_image
from demo.training.parts import load_part

MODELS = Path(__file__).resolve().parent / "models"
_CARDS = Path(__file__).resolve().parent / "cards"


def write_pair(parts: Path, models: Path = MODELS) -> dict[Stage, Path]:
    """Write both pipelines in half precision, each with its list of digests and its model card.

    Args:
        parts: the folder of the trained parts.
        models: the folder of the pipelines; those that are there are replaced.

    Raises:
        FileNotFoundError: a part has not been trained yet.
    """
    written = {}
    for stage, pipeline in ((Stage.T2I, _text_to_image(parts)), (Stage.I2V, _image_to_video(parts))):
        target = models / f"{DEMO_MODEL}-{stage}"
        temporary = target.with_name(f".{target.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        pipeline.to(dtype=torch.float16).save_pretrained(temporary)
        counts = [
            p.numel()
            for part in pipeline.components.values()
            if isinstance(part, torch.nn.Module)
            for p in part.parameters()
        ]
        known = vocabulary()
        if stage is Stage.T2I:
            (temporary / VOCABULARY).write_text("\n".join(known) + "\n")
        card = (_CARDS / f"{stage}.md").read_text()
        (temporary / "README.md").write_text(card.format(parameters=sum(counts) / 1e6, words=len(known)))
        write_list(temporary)
        for path in temporary.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)  # weights come out readable by their owner only
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        written[stage] = target
    return written


def _text_to_image(parts: Path) -> DiffusionPipeline:
    network = load_part("text-to-image", parts)
    return StableDiffusionPipeline(
        vae=load_part("image-vae", parts),
        text_encoder=network.text_encoder,
        tokenizer=text_to_image.tokenizer(),
        unet=network.unet,
        scheduler=text_to_image.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _image_to_video(parts: Path) -> DiffusionPipeline:
    network = load_part("image-to-video", parts)
    return StableVideoDiffusionPipeline(
        vae=load_part("temporal-vae", parts),
        image_encoder=network.image_encoder,
        unet=network.unet,
        scheduler=image_to_video.scheduler(),
        feature_extractor=image_to_video.image_processor(),
    )
