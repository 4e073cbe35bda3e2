"""A small classifier that says what a picture of the demo's world shows: it learns from renders and judges models."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from demo.scenes import COLOURS, GROUNDS, KINDS, SKIES, Kind, Scene

WEIGHTS = Path(__file__).resolve().parent / "judge.safetensors"
_SIDE = 128
_WIDTHS = (24, 48, 96, 128)


@dataclass(frozen=True)
class Verdict:
    """What a picture shows."""

    sky: str
    ground: str
    subjects: dict[Kind, str]
    """Kinds that are there, and their colours."""

    @classmethod
    def of_scene(cls, scene: Scene) -> "Verdict":
        """The truth."""
        return cls(scene.sky, scene.ground, {thing.kind: thing.colour for thing in scene.subjects})


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norms[0](self.first(x)))
        return x + functional.relu(self.norms[1](self.second(x)))


class Judge(nn.Module):
    """Pictures of any size in, scores of everything that a scene can hold out."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, *_WIDTHS)
        self.blocks = nn.Sequential(*(_Block(*pair) for pair in pairwise(widths)))
        self.heads = nn.Linear(2 * _WIDTHS[-1], len(SKIES) + len(GROUNDS) + len(KINDS) * (1 + len(COLOURS)))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits of the sky (N×5), the ground (N×5), each kind (N×7) and its colour (N×7×9).

        Args:
            pictures: N×3×128×128, -1 to 1.
        """
        features = self.blocks(pictures)
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1)
        sky, ground, kinds, colours = self.heads(pooled).split(
            [len(SKIES), len(GROUNDS), len(KINDS), len(KINDS) * len(COLOURS)], dim=1
        )
        return sky, ground, kinds, colours.unflatten(1, (len(KINDS), len(COLOURS)))

    @torch.no_grad()
    def judge(self, pictures: Sequence[np.ndarray]) -> list[Verdict]:
        """What some pictures show.

        Args:
            pictures: H×W×3 uint8, RGB, of any sizes.
        """
        verdicts = []
        for start in range(0, len(pictures), 64):
            batch = torch.stack([to_input(picture) for picture in pictures[start : start + 64]])
            sky, ground, kinds, colours = self(batch)
            for index in range(len(batch)):
                found: dict[Kind, str] = {
                    kind: COLOURS[int(colours[index, row].argmax())]
                    for row, kind in enumerate(KINDS)
                    if kinds[index, row] > 0
                }
                verdicts.append(Verdict(SKIES[int(sky[index].argmax())], GROUNDS[int(ground[index].argmax())], found))
        return verdicts

    def save(self, file: Path = WEIGHTS) -> None:
        """Write the weights in half precision."""
        save_file(
            {
                name: (value.half() if value.is_floating_point() else value).contiguous()
                for name, value in self.state_dict().items()
            },
            file,
        )

    @classmethod
    def load(cls, file: Path = WEIGHTS) -> "Judge":
        """The trained judge.

        Raises:
            FileNotFoundError: it has not been trained yet.
        """
        judge = cls()
        judge.load_state_dict(load_file(file))
        return judge.eval()


def to_input(picture: np.ndarray) -> Tensor:
    """A picture as the judge takes it: 3×128×128, whatever its aspect."""
    small = Image.fromarray(picture).resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).float().div(127.5).sub(1)


def loss(outputs: tuple[Tensor, Tensor, Tensor, Tensor], targets: Tensor) -> Tensor:
    """Cross-entropy of everything; the colour of what is not there does not count.

    Args:
        outputs: of a judge.
        targets: N×9: indices of sky and ground, and of each kind's colour, -1 where there is none of that kind.
    """
    sky, ground, kinds, colours = outputs
    of_kinds = targets[:, 2:]
    return (
        functional.cross_entropy(sky, targets[:, 0])
        + functional.cross_entropy(ground, targets[:, 1])
        + 7 * functional.binary_cross_entropy_with_logits(kinds, (of_kinds >= 0).float())
        + functional.cross_entropy(colours.flatten(0, 1), of_kinds.flatten(), ignore_index=-1)
    )


def target(scene: Scene) -> Tensor:
    """The truth about a scene, as `loss` takes it."""
    colours = {thing.kind: COLOURS.index(thing.colour) for thing in scene.subjects}
    return torch.tensor(
        [SKIES.index(scene.sky), GROUNDS.index(scene.ground), *(colours.get(kind, -1) for kind in KINDS)]
    )
