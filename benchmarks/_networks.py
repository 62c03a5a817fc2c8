"""Networks that benchmarks train: small, convolutional with normalization, transformer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inner, outer, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outer),
            nn.ReLU(),
            nn.Conv2d(outer, outer, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outer),
        )
        same = stride == 1 and inner == outer
        self.skip: nn.Module = (
            nn.Identity()
            if same
            else nn.Sequential(
                nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.skip(x))


def mlp() -> nn.Module:
    """1e5 weights."""
    return nn.Sequential(
        nn.Linear(200, 256), nn.ReLU(), nn.Linear(256, 172), nn.ReLU(), nn.Linear(172, 10)
    )


def resnet18() -> nn.Module:
    """ResNet-18 for 32 x 32 images (He et al. 2016, as used on CIFAR-10): 1.1e7 weights."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    inner = 64
    for outer, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Residual(inner, outer, stride), Residual(outer, outer, 1)]
        inner = outer
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inward = nn.Linear(width, 3 * width)
        self.outward = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.inward(x).view(batch, length, 3, self.heads, -1).unbind(2)
        query, key, value = (part.transpose(1, 2) for part in parts)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.outward(mixed.transpose(1, 2).reshape(batch, length, width))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before_attention(x))
        return x + self.mlp(self.before_mlp(x))


class GPT(nn.Module):
    def __init__(
        self, tokens: int = 1024, width: int = 320, layers: int = 8, heads: int = 8
    ) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(tokens, width), nn.Embedding(256, width)
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, tokens, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.norm(self.layers(self.token(tokens) + self.position(places))))


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    outputs, targets = model(batch[0]), batch[1]
    return nn.functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())


@dataclass(frozen=True)
class Workload:
    """A network with its data.

    Parameters
    ----------
    name : str
        For tables.
    model : callable
        Makes the network.
    data : callable
        A number of examples to inputs and targets.
    batch_size : int
        Examples per step.
    stretch : int
        Steps between two looks at the clock.
    pairs : int
        Stretches with recording, and as many without.
    """

    name: str
    model: Callable[[], nn.Module]
    data: Callable[[int], tuple[Tensor, Tensor]]
    batch_size: int
    stretch: int
    pairs: int


def _tokens(count: int) -> tuple[Tensor, Tensor]:
    text = torch.randint(0, 1024, (count, 65))
    return text[:, :-1], text[:, 1:]


WORKLOADS = (
    Workload(
        "MLP, 1e5 weights",
        mlp,
        lambda count: (torch.randn(count, 200), torch.randint(0, 10, (count,))),
        64,
        200,
        15,
    ),
    Workload(
        "ResNet-18, 1.1e7",
        resnet18,
        lambda count: (torch.randn(count, 3, 32, 32), torch.randint(0, 10, (count,))),
        64,
        1,
        5,
    ),
    Workload("GPT, 1.0e7", GPT, _tokens, 8, 2, 5),
)
