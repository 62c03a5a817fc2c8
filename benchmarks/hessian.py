"""What products with the Hessian cost, in gradients of as many examples.

Run as ``python -m benchmarks hessian``; prints a markdown table. What is compared alternates in one
process, with one thread; times are of the processor time of that thread, and ratios are medians of
paired ones. PyHessian's products are written out here (one batch, whose graph is kept); curvlinops'
are its own where it is installed.
"""

from __future__ import annotations

import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks._networks import GPT, Residual, loss
from tracelab_collectors import HessianVectors
from tracelab_collectors.attach import attach
from tracelab_collectors.frozen import FrozenLoss
from tracelab_collectors.indexed import Indexed
from tracelab_collectors.layout import Layout
from tracelab_collectors.products import HessianProducts, lanczos

STEPS = 32
PIECES = 4
# What a row by default has: 30 forms, 32 of Lanczos, 32 of noise.
PRODUCTS = 30 + 32 + 32


@dataclass(frozen=True)
class Case:
    name: str
    model: Callable[[], nn.Module]
    data: Callable[[int], tuple[Tensor, Tensor]]
    examples: int
    rounds: int


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def narrow_resnet() -> nn.Module:
    """ResNet-18 of a quarter of its width: 7e5 weights."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    inner = 16
    for outer, stride in ((16, 1), (32, 2), (64, 2), (128, 2)):
        layers += [Residual(inner, outer, stride), Residual(outer, outer, 1)]
        inner = outer
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def tokens(count: int) -> tuple[Tensor, Tensor]:
    text = torch.randint(0, 512, (count, 33))
    return text[:, :-1], text[:, 1:]


CASES = (
    Case(
        "MLP 64-32-10, 1,200 examples",
        mlp,
        lambda count: (torch.randn(count, 64), torch.randint(0, 10, (count,))),
        1200,
        41,
    ),
    Case(
        "ResNet-18 of a quarter width, 7e5 weights, 16 images",
        narrow_resnet,
        lambda count: (torch.randn(count, 3, 32, 32), torch.randint(0, 10, (count,))),
        16,
        7,
    ),
    Case(
        "GPT, 4 layers of 128, 9e5 weights, 16 x 32 tokens",
        partial(GPT, 512, 128, 4, 4),
        tokens,
        16,
        7,
    ),
)


def seconds(call: Callable[[], Any]) -> float:
    started = time.thread_time()
    call()
    return time.thread_time() - started


def by_hand(model: nn.Module, batch: Any) -> Callable[[Tensor], Any]:
    """PyHessian's product: the gradient's graph kept, vectors as lists."""
    parameters = list(model.parameters())
    with sdpa_kernel(SDPBackend.MATH):
        gradient = torch.autograd.grad(loss(model, batch), parameters, create_graph=True)

    def product(vector: Tensor) -> Any:
        sizes = [parameter.numel() for parameter in parameters]
        parts = [
            part.view_as(parameter)
            for part, parameter in zip(vector.split(sizes), parameters, strict=True)
        ]
        return torch.autograd.grad(
            gradient, parameters, grad_outputs=parts, only_inputs=True, retain_graph=True
        )

    return product


def by_curvlinops(model: nn.Module, batch: Any) -> Callable[[Tensor], Any] | None:
    """The product of curvlinops, or None where it is not installed."""
    try:
        from curvlinops import HessianLinearOperator
    except ModuleNotFoundError:
        return None

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, inputs: Tensor) -> Tensor:
            return self.model(inputs).flatten(0, -2)

    data = [(batch[0], batch[1].flatten())]
    operator = HessianLinearOperator(
        Flat(), nn.CrossEntropyLoss(), list(model.parameters()), data, check_deterministic=False,
        batch_size_fn=lambda inputs: inputs.shape[0],
    )  # fmt: skip

    def product(vector: Tensor) -> Any:
        with sdpa_kernel(SDPBackend.MATH):
            return operator @ vector

    return product


def measure(case: Case) -> list[tuple[str, list[float]]]:
    """Return names and paired ratios."""
    torch.manual_seed(0)
    model, batch = case.model().eval(), case.data(case.examples)
    names, parameters = zip(*model.named_parameters(), strict=True)
    sizes = [parameter.numel() for parameter in parameters]
    offsets = tuple(accumulate(sizes[:-1], initial=0))
    layout = Layout(names, tuple(tuple(each.shape) for each in parameters), offsets)
    data = torch.utils.data.TensorDataset(*batch)
    frozen = FrozenLoss(loss, model, dict(zip(names, parameters, strict=True)))
    indices = torch.arange(case.examples)

    def products(piece: int) -> HessianProducts:
        examples = Indexed.of(data, None, torch.device("cpu"))
        return HessianProducts(frozen, examples, indices, layout, piece=piece, seed=0)

    whole, pieces = products(case.examples), products(-(-case.examples // PIECES))
    parts = [data[each] for each in indices.split(-(-case.examples // PIECES))]
    wanted = list(parameters)

    def gradient(of: Any) -> Any:
        return torch.autograd.grad(loss(model, of), wanted)

    normal = [torch.randn(shape) for shape in layout.shapes]
    flat = layout.flat(normal, dtype=torch.float32, device=torch.device("cpu"))
    vector = torch.cat([each.flatten() for each in normal])
    calls: dict[str, Callable[[], Any]] = {
        "gradient": lambda: gradient(batch),
        "gradient in pieces": lambda: [gradient(part) for part in parts],
        "product": lambda: whole(flat),
        "pieces": lambda: pieces(flat),
        "by hand": partial(by_hand(model, batch), vector),
    }
    other = by_curvlinops(model, batch)
    if other is not None:
        calls["curvlinops"] = partial(other, vector)
    for call in calls.values():
        call()
    spent: dict[str, list[float]] = {name: [] for name in (*calls, "lanczos", "alone")}
    for number in range(case.rounds):
        for name, call in calls.items():
            spent[name].append(seconds(call))
        if number < max(case.rounds // 4, 2):
            spent["lanczos"].append(seconds(lambda: lanczos(whole, flat, STEPS)))
            spent["alone"].append(seconds(lambda: [whole(flat) for _ in range(STEPS)]))

    def over(name: str, of: str) -> list[float]:
        return [a / b for a, b in zip(spent[name], spent[of], strict=True)]

    rows = [
        ("a product over a gradient", over("product", "gradient")),
        (f"the same in {PIECES} pieces", over("pieces", "gradient in pieces")),
        (f"Lanczos {STEPS} over {STEPS} products", over("lanczos", "alone")),
        ("a product over PyHessian's loop", over("product", "by hand")),
    ]
    if other is not None:
        rows.append(("a product over curvlinops'", over("product", "curvlinops")))
    # As many examples in the noise's minibatches, so that a gradient is one unit everywhere.
    curved = HessianVectors(every=1, examples=None, batch_size=case.examples)
    ratio = row(curved, case, model, data, lambda: gradient(batch))
    rows.append(("a row of HessianVectors, in gradients", [ratio]))
    return rows


def row(
    collector: Any, case: Case, model: nn.Module, data: Any, gradient: Callable[[], Any]
) -> float:
    """Return the time of a whole row by default over that of a gradient of as many examples."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with (
        tempfile.TemporaryDirectory() as folder,
        attach(
            model,
            optimizer,
            Path(folder) / "run.zarr",
            collectors=[collector],
            loss=loss,
            data=data,
        ),
    ):
        unit = statistics.median(seconds(gradient) for _ in range(case.rounds))
        return seconds(optimizer.step) / unit


def main() -> None:
    torch.set_num_threads(1)
    print("| | median | least to most |\n|---|---|---|")
    for case in CASES:
        for name, ratios in measure(case):
            print(
                f"| {case.name}: {name} | {statistics.median(ratios):.2f} | "
                f"{min(ratios):.2f} to {max(ratios):.2f} |",
                flush=True,
            )
    if importlib.util.find_spec("curvlinops") is None:
        print("\ncurvlinops is not installed: not compared.")
    print(
        f"\nA row of HessianVectors by default has {PRODUCTS} products and 64 gradients of "
        "minibatches, here of as many examples."
    )


if __name__ == "__main__":
    main()
