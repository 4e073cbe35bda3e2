"""The image-to-video model: a CLIP image encoder and a UNet of space and time, trained together on latents of clips.

Noise, preconditioning and target are those of the scheduler that Stable Video Diffusion is sampled with (Karras et al.
2022, in diffusers' EulerDiscreteScheduler with continuous v-prediction).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import EulerDiscreteScheduler, UNetSpatioTemporalConditionModel
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from demo.scenes import BUCKETS_PER_UNIT
from demo.training.loop import Batches, channels_last

USUAL_FRAMES = 14
NOISE_STRENGTHS = (0.02, 0.3)
"""`noise_aug_strength` of most conditioning pictures, and the most of the others."""
_EMBEDDING = 32
_UNCONDITIONAL_SHARE = 0.1
_SHIFT_OF_FRAMES = 0.2
"""Standard deviation of the noise's shift of a whole frame, relative to that of the noise."""
_MAX_FPS, _MAX_BUCKET = 30, 255
_SIGMAS = (0.002, 700.0)


class ImageToVideoNetwork(nn.Module):
    """What learns to move: the image encoder and the UNet."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=48,
                intermediate_size=96,
                projection_dim=_EMBEDDING,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=224,
                patch_size=16,
            )
        )
        self.unet = UNetSpatioTemporalConditionModel(
            sample_size=32,
            block_out_channels=(64, 64, 96),
            layers_per_block=1,
            addition_time_embed_dim=32,
            projection_class_embeddings_input_dim=96,
            cross_attention_dim=_EMBEDDING,
            num_attention_heads=4,
            num_frames=USUAL_FRAMES,
            down_block_types=("DownBlockSpatioTemporal", "CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            up_block_types=("UpBlockSpatioTemporal",) * 3,
        )
        channels_last(self.unet)

    def loss(self, latents: Tensor, condition: Tensor, pictures: Tensor, time_ids: Tensor, sigmas: Tensor) -> Tensor:
        """How far the predicted velocity is off.

        Args:
            latents: N×T×4×H×W of clips.
            condition: N×4×H×W, of their first frames with a little noise.
            pictures: N×3×224×224, the first frames as the image encoder takes them.
            time_ids: N×3: frames a second less one, motion bucket, strength of that noise.
            sigmas: N, standard deviations of the clips' noise.
        """
        count, frames = latents.shape[:2]
        embedding = self.image_encoder(pictures).image_embeds.unsqueeze(1)
        # Both are left out together, as the pipeline does for guidance.
        given = torch.rand(count, device=latents.device) > _UNCONDITIONAL_SHARE
        embedding = embedding * given.view(-1, 1, 1)
        condition = condition * given.view(-1, 1, 1, 1)
        sigma = sigmas.view(-1, 1, 1, 1, 1)
        # Guidance exaggerates how a picture's colours differ from the usual ones, so a sampled frame can be too bright
        # as a whole. Noise that shifts each frame teaches that only the given picture tells how bright a frame is.
        shifts = _SHIFT_OF_FRAMES * torch.randn_like(latents[..., :1, :1]) * given.view(-1, 1, 1, 1, 1)
        noisy = latents + sigma * (torch.randn_like(latents) + shifts)
        scale = (sigma.square() + 1).sqrt()
        velocity = (noisy / scale**2 - latents) * scale / sigma
        given_frames = condition.unsqueeze(1).expand(-1, frames, -1, -1, -1)
        sample = torch.cat([noisy / scale, given_frames], dim=2)
        predicted = self.unet(sample, 0.25 * sigmas.log(), embedding, time_ids).sample
        return _loss(predicted.float() - velocity, given)


def _loss(error: Tensor, given: Tensor) -> Tensor:
    """Mean squares of an error (N×T×C×H×W) and, where a picture is given, of its means over cells and whole frames.

    The expected velocity minimizes each of them. Without the means, the colour of a sky has hardly more weight than
    one latent, and wavers from frame to frame. Without a picture, a frame's mean cannot be known, and its large error
    would drown the rest.
    """
    frames = (error * given.view(-1, 1, 1, 1, 1)).flatten(0, 1)
    over_cells = avg_pool2d(frames, 4).square().mean()
    return error.square().mean() + 4 * over_cells + 16 * frames.mean((2, 3)).square().mean()


def scheduler() -> EulerDiscreteScheduler:
    """The scheduler of Stable Video Diffusion."""
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        interpolation_type="linear",
        prediction_type="v_prediction",
        sigma_min=_SIGMAS[0],
        sigma_max=_SIGMAS[1],
        steps_offset=1,
        timestep_spacing="leading",
        timestep_type="continuous",
        use_karras_sigmas=True,
    )


def image_processor() -> CLIPImageProcessor:
    """What normalizes pictures for the image encoder."""
    return CLIPImageProcessor(crop_size=224, size={"shortest_edge": 224})


def for_image_encoder(pictures: Tensor) -> Tensor:
    """Pictures (N×3×H×W, -1 to 1) as the pipeline gives them to the image encoder."""
    processor = image_processor()
    mean, deviation = (
        torch.tensor(x, device=pictures.device).view(1, 3, 1, 1) for x in (processor.image_mean, processor.image_std)
    )
    return ((_resize_with_antialiasing(pictures, (224, 224)) + 1) / 2 - mean) / deviation


@dataclass(frozen=True)
class ClipPool:
    """Encoded clips of one size and length, on the device."""

    latents: Tensor
    """N×T×4×H×W."""
    conditions: Tensor
    """N×2×4×H×W: of the first frame, with noise of either kind of strength."""
    strengths: Tensor
    """N×2: of that noise."""
    pictures: Tensor
    """N×3×224×224 for the image encoder."""
    steps: Tensor
    """N: of the scene's time, between two frames."""


def batches(network: ImageToVideoNetwork, pools: list[tuple[float, int, ClipPool]], area: int) -> list[Batches]:
    """What the network is trained on.

    Args:
        network: the network.
        pools: a share of the steps, a number of frames, and clips of at least as many.
        area: latent positions of a batch, over all frames.
    """

    def loss_of(frames: int, pool: ClipPool) -> Callable[[], Tensor]:
        device = pool.latents.device
        positions = pool.latents[0, 0, 0].numel()
        count = max(1, area // (positions * frames))
        # What decides a large picture's layout drowns in more noise than what decides a small one's.
        shift = 0.5 * math.log(positions / 384)

        def loss() -> Tensor:
            which = torch.randint(len(pool.latents), (count,), device=device)
            kind = (torch.rand(count, device=device) < 0.25).long()
            time_ids = _time_ids(pool.steps[which], pool.strengths[which, kind])
            sigmas = _random_sigmas(count, shift, device)
            clips, conditions = pool.latents[which, :frames].float(), pool.conditions[which, kind].float()
            return network.loss(clips, conditions, pool.pictures[which].float(), time_ids, sigmas)

        return loss

    return [
        Batches(f"{pool.latents.shape[-1] * 8}x{pool.latents.shape[-2] * 8}x{frames}", share, loss_of(frames, pool))
        for share, frames, pool in pools
    ]


def _time_ids(steps: Tensor, strengths: Tensor) -> Tensor:
    """A frame rate and the motion bucket at which clips move by such steps, with the noise's strength: N×3."""
    per_frame = BUCKETS_PER_UNIT * steps
    fastest = (_MAX_BUCKET / per_frame.clamp(min=1e-3)).clamp(1, _MAX_FPS)
    rates = ((fastest + 1).log() * torch.rand_like(steps)).exp().floor().clamp(min=1)
    return torch.stack([rates - 1, (per_frame * rates).clamp(max=_MAX_BUCKET), strengths], dim=1)


def _random_sigmas(count: int, shift: float, device: torch.device) -> Tensor:
    """Levels of noise, most of them where motion is decided: below 1 it can be read off the noisy frames."""
    choice = torch.rand(count, device=device)
    normal = torch.randn(count, device=device)
    low, high = (math.log(sigma) for sigma in (0.01, _SIGMAS[1]))
    logs = torch.where(choice < 0.5, 1.2 + shift + normal, -0.5 + shift + 1.2 * normal)
    logs = torch.where(choice < 0.75, logs, low + (high - low) * torch.rand(count, device=device))
    return logs.clamp(math.log(_SIGMAS[0]), high).exp()
