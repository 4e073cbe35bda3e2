"""The VAEs: one of pictures, and the clips' one, which encodes alike and decodes frames together."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from demo.training.loop import Batches, channels_last

_WIDTHS = {"block_out_channels": (64,) * 4, "down_block_types": ("DownEncoderBlock2D",) * 4, "layers_per_block": 1}
"""The temporal decoder normalizes in 32 groups. Of 32 channels each would be a group of its own and lose its mean,
which is the colour of a plain sky."""


def image_autoencoder() -> AutoencoderKL:
    """A VAE of pictures that starts as a linear pyramid: it halves and doubles sizes, its branches are near zero."""
    network = AutoencoderKL(
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=32,
        mid_block_add_attention=False,
        sample_size=256,
        scaling_factor=1.0,
        force_upcast=False,
        **_WIDTHS,
    )
    channels_last(network)
    with torch.no_grad():
        for name, layer in network.named_modules():
            if isinstance(layer, nn.Conv2d):
                _start_linear(name, layer)
    return network


def _start_linear(name: str, layer: nn.Conv2d) -> None:
    weight, through = layer.weight, range(min(layer.weight.shape[:2]))
    if name.endswith("downsamplers.0.conv"):
        weight.mul_(0.1)
        for channel in through:
            weight[channel, channel, :2, :2] += 0.25
    elif name.endswith(("upsamplers.0.conv", "conv_shortcut")):
        weight.mul_(0.1)
        for channel in through:
            weight[channel, channel, weight.shape[2] // 2, weight.shape[3] // 2] += 1
    elif name.endswith("conv2"):
        weight.mul_(0.1)


def reconstruction_loss(made: Tensor, true: Tensor) -> Tensor:
    """How far pictures of N×3×H×W are from the true ones: L1, of edges, of colours apart from brightness, and of means.

    Without its third part small things come out grey.
    """
    error = made.float() - true
    loss = error.abs().mean() + 0.5 * error.square().mean()
    loss = loss + 0.5 * error.diff(dim=-1).abs().mean() + 0.5 * error.diff(dim=-2).abs().mean()
    loss = loss + 1.5 * (error - error.mean(1, keepdim=True)).abs().mean()
    for cells in (4, 16):
        loss = loss + 0.5 * avg_pool2d(error, cells).abs().mean()
    return loss


def to_signed(pixels: Tensor) -> Tensor:
    """N×H×W×3 uint8 as N×3×H×W floats from -1 to 1, as a VAE takes them."""
    return pixels.permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)


def windows(pool: Tensor, count: int, side: int) -> Tensor:
    """Random square windows of random pictures of a pool of N×H×W×3."""
    total, height, width, _ = pool.shape
    device = pool.device
    which = torch.randint(total, (count, 1, 1), device=device)
    rows = torch.randint(height - side + 1, (count, 1, 1), device=device) + torch.arange(side, device=device)[:, None]
    columns = torch.randint(width - side + 1, (count, 1, 1), device=device) + torch.arange(side, device=device)
    return pool[which, rows, columns]


def image_batches(network: AutoencoderKL, pools: list[Tensor], area: int) -> list[Batches]:
    """What the VAE of pictures is trained on: windows of some pictures and the whole of others.

    Args:
        network: the VAE.
        pools: pictures of one size each, N×H×W×3 uint8, on the network's device.
        area: pixels of a batch.
    """

    def loss_of(draw: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def loss() -> Tensor:
            true = to_signed(draw())
            posterior = network.encode(true).latent_dist
            made = network.decode(posterior.sample()).sample
            # In a mean over all values; ten times less lets the latents grow to a standard deviation of 8.
            divergence = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).float().mean()
            return reconstruction_loss(made, true) + 1e-3 * divergence

        return loss

    def whole(pool: Tensor) -> Callable[[], Tensor]:
        count = max(1, area // (pool.shape[1] * pool.shape[2]))
        return lambda: pool[torch.randint(len(pool), (count,), device=pool.device)]

    def pieces(pool: Tensor) -> Callable[[], Tensor]:
        side = 96
        return lambda: windows(pool, max(1, area // side**2), side)

    def kind(pool: Tensor) -> Batches:
        _, height, width, _ = pool.shape
        draw = pieces(pool) if height * width > area else whole(pool)
        return Batches(f"{width}x{height}", 1 / len(pools), loss_of(draw))

    return [kind(pool) for pool in pools]


@torch.no_grad()
def whiten(network: AutoencoderKL, pixels: list[Tensor]) -> None:
    """Give latents mean 0 and the identity as covariance, by the layers around them; what is decoded stays the same.

    Diffusion then needs no scaling factor, and neither does a picture that conditions a clip, which no pipeline scales.

    Args:
        network: a trained VAE.
        pixels: pictures to measure on, each N×H×W×3 uint8.
    """
    channels = network.config.latent_channels
    latents = torch.cat(
        [
            network.encode(to_signed(part)).latent_dist.mode().float().transpose(0, 1).flatten(1)
            for whole in pixels
            for part in whole.split(8)
        ],
        dim=1,
    )
    mean, covariance = latents.mean(1), torch.cov(latents)
    values, vectors = torch.linalg.eigh(covariance)
    whitening = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    before, after = network.quant_conv, network.post_quant_conv
    inner, outer = before.weight[:channels, :, 0, 0].clone(), after.weight[:, :, 0, 0].clone()
    before.weight[:channels] = (whitening @ inner)[..., None, None]
    before.bias[:channels] = whitening @ (before.bias[:channels] - mean)
    before.bias[channels:] += 2 * whitening.diagonal().log()  # of the posterior's log-variance, roughly
    after.bias += outer @ mean
    after.weight.copy_((outer @ torch.linalg.inv(whitening))[..., None, None])


_COMFORTABLE = 64.0
"""Values of a residual stream up to which half precision is far from its end, 65504."""


@torch.no_grad()
def fit_half_precision(network: AutoencoderKL | AutoencoderKLTemporalDecoder, run: Callable[[], object]) -> None:
    """Scale the residual streams of a VAE down to where half precision holds them; what it computes stays the same.

    Nothing in training keeps a stream small: each block normalizes what it reads, and the last one what it hands on. So
    a stream may be scaled by what adds to it.

    Args:
        network: a trained VAE.
        run: calls it on pictures that are like all others.
    """
    halves = [list(_encoder_streams(network.encoder)), list(_decoder_streams(network.decoder))]
    largest: dict[nn.Module, float] = {}

    def note(layer: nn.Module, inputs: object, output: Tensor) -> None:
        largest[layer] = max(largest.get(layer, 0), output.abs().max().item())

    layers = [layer for streams in halves for stream in streams for layer in stream]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    run()
    for hook in hooks:
        hook.remove()
    for streams in halves:
        before = 1.0
        for first, *blocks in streams:
            most = max(largest[layer] for layer in (first, *blocks))
            scale = 2.0 ** -max(0, math.ceil(math.log2(most / _COMFORTABLE)))
            first.weight.mul_(scale / before)
            first.bias.mul_(scale)
            for layer in (inner.conv2 for block in blocks for inner in block.modules() if hasattr(inner, "conv2")):
                layer.weight.mul_(scale)
                layer.bias.mul_(scale)
            before = scale


def _encoder_streams(encoder: Any) -> Iterator[list[Any]]:
    """Each residual stream: the convolution that begins it, then the blocks that add to it."""
    first, *others = encoder.down_blocks
    streams = [[encoder.conv_in, *first.resnets]]
    streams += [[before.downsamplers[0].conv, *block.resnets] for before, block in pairwise([first, *others])]
    streams[-1] += encoder.mid_block.resnets
    yield from streams


def _decoder_streams(decoder: Any) -> Iterator[list[Any]]:
    """Likewise."""
    first, *others = decoder.up_blocks
    yield [decoder.conv_in, *decoder.mid_block.resnets, *first.resnets]
    for before, block in pairwise([first, *others]):
        yield [before.upsamplers[0].conv, *block.resnets]


@torch.no_grad()
def temporal_autoencoder(images: AutoencoderKL) -> AutoencoderKLTemporalDecoder:
    """A VAE of clips: the pictures' encoder, which stays, and a decoder that starts with the pictures' layers.

    At first it decodes each frame separately, since temporal layers add nothing. Its middle has one residual block less
    than the pictures' decoder, which costs about 1 dB.
    """
    network = AutoencoderKLTemporalDecoder(
        latent_channels=4, sample_size=256, scaling_factor=1.0, force_upcast=False, **_WIDTHS
    )
    missing, _ = network.encoder.load_state_dict(images.encoder.state_dict(), strict=False)
    for name in missing:  # an attention that the pictures' encoder does without: it adds nothing
        network.encoder.get_parameter(name).zero_()
    network.quant_conv.load_state_dict(images.quant_conv.state_dict())
    own, theirs = network.decoder.state_dict(), images.decoder.state_dict()
    for name in own:
        if (known := theirs.get(name.replace(".spatial_res_block", ""))) is not None:
            own[name] = known
    # It has no layer of its own before the first one.
    before, first = images.post_quant_conv, images.decoder.conv_in
    own["conv_in.weight"] = torch.einsum("oihw,ij->ojhw", first.weight, before.weight[:, :, 0, 0])
    own["conv_in.bias"] = first.bias + first.weight.sum((2, 3)) @ before.bias
    for name, value in own.items():
        if "temporal_res_block.conv2" in name or name.startswith("time_conv_out"):
            own[name] = torch.zeros_like(value)
    own["time_conv_out.weight"][range(3), range(3), 1] = 1
    network.decoder.load_state_dict(own)
    channels_last(network)
    network.requires_grad_(False)
    # Trained as a whole for 20 minutes, the decoder got worse at single frames, by 1 to 4 dB.
    # Its first layer learns too: torch 2.13 crashes in the backward pass of a group norm on a CPU (channels last) whose
    # input needs no gradient.
    trained = ("conv_in", "temporal_res_block", "time_mixer", "time_conv_out")
    for name, weight in network.decoder.named_parameters():
        weight.requires_grad_(name.startswith(trained[0]) or any(part in name for part in trained[1:]))
    return network


def temporal_batches(network: AutoencoderKLTemporalDecoder, pools: list[Tensor], area: int) -> list[Batches]:
    """What the decoder of clips is trained on: windows of clips.

    Args:
        network: the VAE.
        pools: clips of one size each, N×T×H×W×3 uint8, on the network's device.
        area: pixels of a batch, over all frames.
    """

    def loss_of(pool: Tensor) -> Callable[[], Tensor]:
        frames, side = pool.shape[1], 96
        count = max(1, area // (frames * side**2))

        def loss() -> Tensor:
            # A clip's frames beside each other are a picture of more channels.
            wide = pool.permute(0, 2, 3, 1, 4).flatten(3)
            window = windows(wide, count, side).unflatten(3, (frames, 3)).permute(0, 3, 1, 2, 4)
            true = to_signed(window.flatten(0, 1))
            with torch.no_grad():
                latents = network.encode(true).latent_dist.mode()
            # What the UNet makes is a little off.
            latents = latents + 0.06 * torch.rand_like(latents[:, :1, :1, :1]) * torch.randn_like(latents)
            made = network.decode(latents, num_frames=frames).sample
            drift = (made.float() - true).unflatten(0, (count, frames)).diff(dim=1).abs().mean()
            return reconstruction_loss(made, true) + 0.5 * drift

        return loss

    return [Batches(f"{pool.shape[3]}x{pool.shape[2]}", 1 / len(pools), loss_of(pool)) for pool in pools]
