"""DeepCache: the inner blocks of a UNet are computed in one step of N, their last result serves in the others.

The method is Ma, Fang and Wang's (DeepCache: Accelerating Diffusion Models for Free, arXiv 2312.00858): features of the
inner, low-resolution blocks hardly change from one denoising step to the next. What is always computed is the UNet's
input convolution and the last layer of its last block, which see the step's own latents.
"""

from typing import Any

from torch import nn


class DeepCache:
    """Wraps the blocks of a UNet of the Stable Diffusion family (spatial or spatio-temporal), so that the inner ones
    are computed in one step of `interval`.
    """

    def __init__(self, unet: Any, interval: int) -> None:
        self._interval = interval
        self._step = 0
        self._remembered: dict[int, Any] = {}
        self.reused = 0
        """How often a block was not computed."""
        last = unet.up_blocks[-1]
        inner = [*unet.down_blocks, unet.mid_block, *unet.up_blocks[:-1], *last.resnets[:-1]]
        inner += list(getattr(last, "attentions", []))[:-1]
        for block in inner:
            self._wrap(block)
        unet.register_forward_pre_hook(self._count_call)

    def reset(self) -> None:
        """After a request: the next one's first step is computed whole, and nothing is kept until then."""
        self._step = 0
        self._remembered.clear()

    def _count_call(self, *_: object) -> None:
        if self._step % self._interval == 0:
            self._remembered.clear()  # a step that is computed whole
        self._step += 1

    def _wrap(self, block: nn.Module) -> None:
        compute, key = block.forward, id(block)

        def forward(*args: Any, **options: Any) -> Any:
            if key in self._remembered:
                self.reused += 1
            else:
                self._remembered[key] = compute(*args, **options)
            return self._remembered[key]

        block.forward = forward
