"""The parts of the pair, one after the other: what each is trained on, for how long, and where it lies then.

Below one folder each part has a checkpoint, and a directory with its weights once it is finished. All parts build on
the image VAE's latents, so a finished part records the digest of the image VAE that it belongs to.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from demo.captions import training_caption
from demo.scenes import Scene
from demo.training import autoencoders, image_to_video, pictures, text_to_image
from demo.training.loop import Batches, Plan, autocast, train
from demo.training.pictures import Size

SEED = 1
SHARES = {"image-vae": 0.18, "temporal-vae": 0.1, "text-to-image": 0.36, "image-to-video": 0.36}
"""The parts, and how the time is split between them."""
STILLS = {  # share of the steps, stills
    (384, 256): (0.34, 12_000),
    (256, 256): (0.18, 7_000),
    (256, 384): (0.16, 6_000),
    (512, 512): (0.14, 4_000),
    (192, 128): (0.08, 4_000),
    (768, 512): (0.10, 2_000),
}
CLIPS = {  # clips, and for each number of frames the share of the steps
    (384, 256, 14): (1500, {14: 0.30, 8: 0.04}),
    (384, 256, 25): (450, {25: 0.06}),
    (256, 256, 14): (900, {14: 0.12}),
    (256, 384, 14): (900, {14: 0.12}),
    (192, 128, 25): (2400, {14: 0.20, 25: 0.08, 8: 0.04}),
    (512, 512, 14): (200, {14: 0.04}),
}


@dataclass(frozen=True)
class Effort:
    """What a device can do in the time that there is."""

    device: torch.device
    minutes: float
    """Of all training; rendering and encoding come on top."""

    @property
    def on_gpu(self) -> bool:
        """Whether batches may be large, and data plenty."""
        return self.device.type == "cuda"

    def plan(self, part: str, rate: float) -> Plan:
        """How long a part is trained."""
        return Plan(self.minutes * 60 * SHARES[part], rate)

    def count(self, on_gpu: int) -> int:
        """How many pictures or clips to train on, given how many a GPU gets: a CPU encodes for a fifth of the time."""
        return on_gpu if self.on_gpu else max(4, min(on_gpu, round(on_gpu * self.minutes / 2880)))


def train_part(part: str, effort: Effort, folder: Path, again: bool = False) -> None:
    """Train one part, unless it is done, and write it to a directory of its name.

    Args:
        part: one of `SHARES`.
        effort: how much.
        folder: of all parts.
        again: train it further even if it is finished, from its checkpoint or else from its weights.

    Raises:
        Interrupted: on SIGINT or SIGTERM; the same call continues from the checkpoint.
        ValueError: `again`, but the checkpoint has as much training already.
    """
    checkpoint, weights, done = folder / f"{part}.pt", folder / part / "weights.safetensors", folder / part / "done"
    if not again and is_finished(part, folder):
        print(f"{part}: finished before", flush=True)
        return
    if again and checkpoint.is_file():
        trained = torch.load(checkpoint, weights_only=True)["seconds"] / 60
        if trained >= (planned := effort.minutes * SHARES[part]):
            raise ValueError(f"{part} has had {trained:.1f} minutes of training: more than {planned:g} are needed")
    torch.manual_seed(SEED)
    began = time.monotonic()
    network, batches, rate = _PARTS[part](effort, folder)
    if again and weights.is_file():
        rate *= 0.3  # more would first undo what was learned last
        if not checkpoint.is_file():
            network.load_state_dict(load_file(weights, device=str(effort.device)))
    print(f"{part}: rendered and encoded in {time.monotonic() - began:.0f} s", flush=True)
    train(network, batches, effort.plan(part, rate), checkpoint, SEED)
    if isinstance(network, AutoencoderKL | AutoencoderKLTemporalDecoder):
        _finish(network, effort)
    weights.parent.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, weights)
    done.write_text(_image_vae_digest(folder))


def is_finished(part: str, folder: Path) -> bool:
    """Whether a part is trained, on the latents of the image VAE that is there now."""
    done = folder / part / "done"
    return done.is_file() and done.read_text() == _image_vae_digest(folder)


def _image_vae_digest(folder: Path) -> str:
    weights = folder / "image-vae/weights.safetensors"
    return hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else ""


def _finish(network: AutoencoderKL | AutoencoderKLTemporalDecoder, effort: Effort) -> None:
    """Make a trained VAE fit for use by what is trained on its latents, and in half precision."""
    pools = [_pool(size, 48, SEED + 1, effort) for size in ((384, 256), (256, 256), (256, 384))]
    if isinstance(network, AutoencoderKL):
        autoencoders.whiten(network, pools)

    def run() -> None:
        for pictures_of_a_size in pools:
            for some in pictures_of_a_size.split(8):
                latents = network.encode(autoencoders.to_signed(some)).latent_dist.mode()
                network.decode(latents, **({} if isinstance(network, AutoencoderKL) else {"num_frames": len(some)}))

    autoencoders.fit_half_precision(network, run)


def load_part(part: str, folder: Path) -> nn.Module:
    """A part as training left it, in fp32 on the CPU.

    Raises:
        FileNotFoundError: it is not trained, or on the latents of another image VAE.
    """
    if not is_finished(part, folder):
        raise FileNotFoundError(f"{part} is not trained, or was trained with another image VAE: train it")
    network = _new(part)
    network.load_state_dict(load_file(folder / part / "weights.safetensors"))
    return network.eval().requires_grad_(False)


def _new(part: str) -> nn.Module:
    match part:
        case "image-vae":
            return autoencoders.image_autoencoder()
        case "temporal-vae":
            return autoencoders.temporal_autoencoder(autoencoders.image_autoencoder())
        case "text-to-image":
            return text_to_image.TextToImageNetwork(text_to_image.tokenizer())
        case _:
            return image_to_video.ImageToVideoNetwork()


_Made = tuple[nn.Module, list[Batches], float]


def _image_vae(effort: Effort, folder: Path) -> _Made:
    network = autoencoders.image_autoencoder().to(effort.device)
    sizes = {(384, 256): 3000, (256, 256): 2000, (256, 384): 2000, (192, 128): 3000, (128, 192): 2000}
    pools = [_pool(size, effort.count(count), SEED, effort) for size, count in sizes.items()]
    return network, autoencoders.image_batches(network, pools, area=2**18 if effort.on_gpu else 55_296), 4e-3


def _temporal_vae(effort: Effort, folder: Path) -> _Made:
    images = load_part("image-vae", folder)
    network = autoencoders.temporal_autoencoder(images).to(effort.device)
    pools = []
    for size in ((384, 256), (256, 256), (256, 384)):
        frames = [clip.frames for clip in pictures.clips(size, 6, effort.count(900), SEED + 2)]
        pools.append(torch.from_numpy(np.stack(frames)).to(effort.device))
    return network, autoencoders.temporal_batches(network, pools, area=2**19 if effort.on_gpu else 110_592), 2e-4


def _text_to_image(effort: Effort, folder: Path) -> _Made:
    vae = load_part("image-vae", folder).to(effort.device)
    tokenizer = text_to_image.tokenizer()
    network = text_to_image.TextToImageNetwork(tokenizer).to(effort.device)
    pools = {}
    for size, (_, count) in STILLS.items():
        latents, texts = [], []
        for chunk in _chunks(pictures.stills(size, effort.count(count), SEED), 3_000_000 // (size[0] * size[1])):
            latents.append(_encoded(vae, np.stack([still.pixels for still in chunk]), effort))
            texts += [text for still in chunk for text in wordings(size, still.index, still.scene)]
        tokens = text_to_image.tokenized(tokenizer, texts).to(torch.int16)
        pools[size] = torch.cat(latents), tokens.unflatten(0, (-1, text_to_image.WORDINGS)).to(effort.device)
    shares = {size: share for size, (share, _) in STILLS.items()}
    area = 96 * 1536 if effort.on_gpu else 8 * 1536
    return network, text_to_image.batches(network, tokenizer, pools, shares, area), 4e-3


def wordings(size: Size, index: int, scene: Scene) -> list[str]:
    """The descriptions that a still is trained with."""
    random = Random(f"wordings {size} {index} {SEED}")
    texts = [training_caption(scene, random) for _ in range(text_to_image.WORDINGS)]
    return [text_to_image.with_strange_words(text, random) for text in texts]


def _image_to_video(effort: Effort, folder: Path) -> _Made:
    vae = load_part("image-vae", folder).to(effort.device)
    network = image_to_video.ImageToVideoNetwork().to(effort.device)
    pools = []
    for (width, height, frames), (count, shares) in CLIPS.items():
        clips = pictures.clips((width, height), frames, effort.count(count), SEED)
        pool = _clip_pool(vae, clips, effort, at_once=max(1, 3_000_000 // (width * height * frames)))
        pools += [(share, length, pool) for length, share in shares.items()]
    area = 8 * 14 * 1536 if effort.on_gpu else 14 * 1536
    return network, image_to_video.batches(network, pools, area), 4e-3 if effort.on_gpu else 2e-3


_PARTS: dict[str, Callable[[Effort, Path], _Made]] = {
    "image-vae": _image_vae,
    "temporal-vae": _temporal_vae,
    "text-to-image": _text_to_image,
    "image-to-video": _image_to_video,
}


def _pool(size: Size, count: int, seed: int, effort: Effort) -> Tensor:
    """Stills of a size, N×H×W×3 uint8, on the device."""
    return torch.from_numpy(np.stack([still.pixels for still in pictures.stills(size, count, seed)])).to(effort.device)


def _chunks(items: Iterator, size: int) -> Iterator[list]:  # type: ignore[type-arg]
    chunk = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


@torch.no_grad()
def _encoded(vae: AutoencoderKL | AutoencoderKLTemporalDecoder, pixels: np.ndarray | Tensor, effort: Effort) -> Tensor:
    """Latents (N×4×H×W, fp16, on the device) of pictures: N×H×W×3 uint8, or N×3×H×W floats from -1 to 1."""
    if isinstance(pixels, np.ndarray):
        pixels = autoencoders.to_signed(torch.from_numpy(pixels).to(effort.device))
    with autocast(effort.device, torch.float16):
        return vae.encode(pixels).latent_dist.mode().half().contiguous()


@torch.no_grad()
def _clip_pool(
    vae: AutoencoderKL, clips: Iterator[pictures.Clip], effort: Effort, at_once: int
) -> image_to_video.ClipPool:
    usual, most = image_to_video.NOISE_STRENGTHS
    parts: list[tuple[Tensor, ...]] = []
    generator = torch.Generator(effort.device).manual_seed(SEED)
    for chunk in _chunks(clips, at_once):
        frames = np.stack([clip.frames for clip in chunk])
        latents = _encoded(vae, frames.reshape(-1, *frames.shape[2:]), effort).unflatten(0, frames.shape[:2])
        first = autoencoders.to_signed(torch.from_numpy(frames[:, 0]).to(effort.device))
        strengths = torch.full((len(chunk), 2), usual, device=effort.device)
        strengths[:, 1] = most * torch.rand(len(chunk), generator=generator, device=effort.device)
        noise = [torch.randn(first.shape, generator=generator, device=effort.device) for _ in range(2)]
        conditions = [
            _encoded(vae, first + strengths[:, kind, None, None, None] * noise[kind], effort) for kind in range(2)
        ]
        steps = torch.tensor([clip.step for clip in chunk], device=effort.device)
        for_encoder = image_to_video.for_image_encoder(first.contiguous()).half()
        parts.append((latents, torch.stack(conditions, 1), strengths, for_encoder, steps))
    return image_to_video.ClipPool(*(torch.cat(part) for part in zip(*parts, strict=True)))
