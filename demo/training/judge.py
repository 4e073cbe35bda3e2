"""The judge's training: renders of its own seed, as sharp as they are and as soft as models make them."""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from demo.judge import Judge, Verdict, loss, target, to_input
from demo.training import pictures
from demo.training.loop import channels_last

_SEED = 1000
"""Far from the seeds of what the models are trained on."""
_SIZES = ((384, 256), (256, 256), (256, 384))


def train_judge(count: int = 36_000, epochs: int = 8) -> Judge:
    """A trained judge, after about twenty minutes of two cores."""
    torch.manual_seed(_SEED)
    images, targets = _renders(count, _SEED)
    judge = Judge()
    channels_last(judge)
    steps, batch = count * epochs // 96, 96
    optimizer = torch.optim.AdamW(judge.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for step in range(steps):
        which = torch.randint(count, (batch,))
        value = loss(judge(_softened(images[which].float().div(127.5).sub(1))), targets[which])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"judge  step {step} of {steps}  loss {value.item():.3f}", flush=True)
    return judge.eval()


def accuracy(judge: Judge, count: int = 3000) -> dict[str, float]:
    """Shares of held-out renders where the judge sees the sky, the ground, just the subjects, and all their colours."""
    stills = [still for size in _SIZES for still in pictures.stills(size, count // 3, _SEED + 1)]
    verdicts = judge.judge([still.pixels for still in stills])
    truths = [Verdict.of_scene(still.scene) for still in stills]
    pairs = list(zip(verdicts, truths, strict=True))
    return {
        "sky": sum(v.sky == t.sky for v, t in pairs) / len(pairs),
        "ground": sum(v.ground == t.ground for v, t in pairs) / len(pairs),
        "subject": sum(v.subjects.keys() == t.subjects.keys() for v, t in pairs) / len(pairs),
        "colour": sum(v.subjects == t.subjects for v, t in pairs) / len(pairs),
    }


def _renders(count: int, seed: int) -> tuple[Tensor, Tensor]:
    stills = (still for size in _SIZES for still in pictures.stills(size, count // 3, seed))
    pairs = [(((to_input(still.pixels) + 1) * 127.5).round().byte(), target(still.scene)) for still in stills]
    images, targets = zip(*pairs, strict=True)
    return torch.stack(images), torch.stack(targets)


def _softened(images: Tensor) -> Tensor:
    """Some pictures blurred and all with a little noise, so that sharp edges are no sign."""
    soft = interpolate(avg_pool2d(images, 2), scale_factor=2, mode="bilinear")
    softer = interpolate(avg_pool2d(images, 4), scale_factor=4, mode="bilinear")
    choice = torch.rand(len(images), 1, 1, 1)
    images = torch.where(choice < 0.45, images, torch.where(choice < 0.8, soft, softer))
    noise = 0.08 * torch.rand(len(images), 1, 1, 1)
    shade = 1 + 0.1 * (torch.rand(len(images), 3, 1, 1) - 0.5)
    return images * shade + noise * torch.randn_like(images)
