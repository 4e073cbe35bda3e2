"""Muon for the weights of layers, AdamW for everything else; both can be captured in a CUDA graph.

torch.optim.Muon takes only matrices, while most weights here are convolution kernels, and reads its learning rate on
the host, which a graph cannot.
"""

import torch
from torch import Tensor, nn

_FOR_ADAM = ("conv_in", "conv_out", "embedding", "mix_factor")
"""Parts of the names of weights that are no maps between features: first and last layers, tables, mixing factors."""


class MuonAdamW:
    """One optimizer of a network's trainable parameters, with one learning rate.

    Muon steps along the nearest orthogonal matrix to the momentum (Jordan et al. 2024), scaled to an RMS of 0.2
    whatever the shape, so that one learning rate and decay fit both halves (Liu et al. 2025, "Muon is Scalable").

    Args:
        network: its parameters must require gradients already, or never will.
        adam_share: learning rate of AdamW as a share of Muon's.
    """

    def __init__(
        self, network: nn.Module, adam_share: float = 0.5, momentum: float = 0.95, decay: float = 0.05
    ) -> None:
        trainable = [(name, weight) for name, weight in network.named_parameters() if weight.requires_grad]
        layers = [w for name, w in trainable if w.ndim > 1 and not any(part in name for part in _FOR_ADAM)]
        groups: dict[tuple[int, int], list[Tensor]] = {}
        for weight in layers:
            groups.setdefault((weight.shape[0], weight[0].numel()), []).append(weight)
        self._groups = list(groups.values())
        self._momenta = [
            torch.zeros(len(group), *_matrix(group[0]).shape, device=group[0].device) for group in self._groups
        ]
        self._momentum, self._decay, self._adam_share = momentum, decay, adam_share
        self.rate = torch.zeros((), device=trainable[0][1].device)
        """The learning rate, on the parameters' device: fill it before a step."""
        self._adam_rate = torch.zeros_like(self.rate)
        layer_ids = {id(weight) for weight in layers}
        others = [weight for _, weight in trainable if id(weight) not in layer_ids]
        self._adam = torch.optim.AdamW(
            others, lr=self._adam_rate, betas=(0.9, 0.98), weight_decay=0, fused=True, capturable=self.rate.is_cuda
        )

    @torch.no_grad()
    def step(self) -> None:
        """Move all parameters against their gradients."""
        self._adam_rate.copy_(self.rate * self._adam_share)
        self._adam.step()
        for group, momentum in zip(self._groups, self._momenta, strict=True):
            gradient = torch.stack([_matrix(weight.grad) for weight in group])  # type: ignore[arg-type]
            momentum.lerp_(gradient, 1 - self._momentum)
            update = _orthogonal(gradient.lerp(momentum, self._momentum))  # Nesterov's
            update *= self.rate * (-0.2 * max(update.shape[1:]) ** 0.5)
            torch._foreach_mul_(group, 1 - self.rate * self._decay)
            torch._foreach_add_(group, [part.view_as(w) for part, w in zip(update.unbind(), group, strict=True)])

    def state_dict(self) -> dict[str, object]:
        """All that a later run needs to go on."""
        return {"momenta": self._momenta, "adam": self._adam.state_dict()["state"]}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on from a state of the same network."""
        for mine, theirs in zip(self._momenta, state["momenta"], strict=True):  # type: ignore[call-overload]
            mine.copy_(theirs)
        self._adam.load_state_dict(self._adam.state_dict() | {"state": state["adam"]})
        self._adam.param_groups[0]["lr"] = self._adam_rate  # not the copy that was loaded


def _matrix(weight: Tensor) -> Tensor:
    """Outputs × inputs; a convolution's kernel counts as inputs."""
    return weight.reshape(weight.shape[0], -1)


def _orthogonal(matrices: Tensor) -> Tensor:
    """The orthogonal factors of matrices, roughly: five Newton-Schulz steps with Muon's coefficients."""
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    if tall := x.shape[-2] > x.shape[-1]:
        x = x.mT
    for _ in range(5):
        product = x @ x.mT
        x = 3.4445 * x + (-4.7750 * product + 2.0315 * product @ product) @ x
    return x.mT if tall else x
