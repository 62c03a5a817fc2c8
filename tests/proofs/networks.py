"""Networks and batches small enough to be trained many times over."""

import math

import torch
from torch import Tensor, nn

CLASSES = 3
TOKENS = 11


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 3))


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 4, 4)),
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(64, CLASSES),
    )


class Transformer(nn.Module):
    """Sixteen numbers become tokens; one block of attention; the mean token is classified."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.embedding = nn.Embedding(TOKENS, width)
        self.place = nn.Parameter(0.1 * torch.randn(16, width))
        self.before = nn.LayerNorm(width)
        self.attention = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.behind = nn.LayerNorm(width)
        self.wide = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, numbers: Tensor) -> Tensor:
        tokens = ((numbers.float() + 3) * (TOKENS / 6)).long().clamp(0, TOKENS - 1)
        x = self.embedding(tokens) + self.place
        x = x + self.dropout(self.attend(self.before(x)))
        x = x + self.dropout(self.narrow(nn.functional.gelu(self.wide(self.behind(x)))))
        return self.head(x.mean(1))

    def attend(self, x: Tensor) -> Tensor:
        batch, places, width = x.shape
        split = self.attention(x).view(batch, places, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-2, -1) / math.sqrt(width // self.heads)).softmax(-1)
        return self.out((weights @ value).transpose(1, 2).reshape(batch, places, width))


NETWORKS = {"MLP": mlp, "BatchNorm and dropout": conv_net, "transformer": Transformer}


def data() -> tuple[Tensor, Tensor]:
    """64 examples of sixteen numbers, whose class can be learnt."""
    generator = torch.Generator().manual_seed(11)
    inputs = torch.randn(64, 16, generator=generator)
    return inputs, (3 * inputs[:, 0].sigmoid()).long().clamp(0, CLASSES - 1)


INPUTS, TARGETS = data()


def batch(index: int, size: int = 8) -> tuple[Tensor, Tensor]:
    """Return batch number `index`, the same whenever it is asked for."""
    generator = torch.Generator().manual_seed(index)
    chosen = torch.randint(len(INPUTS), (size,), generator=generator)
    return INPUTS[chosen], TARGETS[chosen]


def loss_of(model: nn.Module, of: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(of[0]), of[1])
