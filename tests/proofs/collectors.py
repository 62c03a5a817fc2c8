"""Every collector there is, all at once."""

import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from torch import nn

import tracelab
from tracelab_collectors import (
    Basin,
    Complexity,
    Evaluation,
    Examples,
    ExitTimes,
    Gradients,
    HessianVectors,
    LiveExamples,
    NoiseProbe,
    OptimizerState,
    PerturbedLoss,
    PriorKernel,
    Sharpness,
    SmoothedGradient,
    Statistics,
    Weights,
    Workers,
)

KNOWN = {
    "basin",
    "complexity",
    "evaluation",
    "examples",
    "exit_times",
    "gradients",
    "hessian_vectors",
    "live_examples",
    "noise_probe",
    "optimizer_state",
    "perturbed_loss",
    "prior_kernel",
    "sharpness",
    "smoothed_gradient",
    "statistics",
    "weights",
    "workers",
}
PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def _drawn_anew(model: nn.Module) -> None:
    for parameter in model.parameters():
        nn.init.normal_(parameter)


def registered() -> list[EntryPoint]:
    """Return the collectors that the project registers, whatever is installed."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    group = "tracelab.collectors"
    return [EntryPoint(*each, group) for each in project["entry-points"][group].items()]


def every_collector(*, probes: bool = True, live: bool = False) -> list[Any]:
    """Return all collectors, with and without rows at every step, of all and of some layers.

    Those that are registered and not named here are made without arguments.

    Parameters
    ----------
    probes : bool
        With those that need a loss and data.
    live : bool
        With `LiveExamples`, which says itself that closures, compiled models and layers that mix
        examples are not for it.
    """
    found: list[Any] = [
        Statistics(quantities=("gradient", "weight", "update", "displacement")),
        Statistics(every=5, layers=".*weight", name="late_statistics"),
        Gradients(sketch=(tracelab.Project(16), tracelab.Full())),
        Gradients(every=2, sketch=tracelab.Sample(8), name="sampled"),
        Gradients(stage="pre_clip"),
        Gradients(stage="update", sketch=tracelab.Full(), every=4),
        OptimizerState(every=5),
        Weights(every=3, sketch=(tracelab.Project(8), tracelab.Sample(4))),
        Workers(every=2, batches=2, sketch=tracelab.Project(8)),
    ]
    found += [entry.load()() for entry in registered() if entry.name not in KNOWN]
    if live:
        found.append(LiveExamples(every=3))
    if probes:
        found += [
            Basin(
                every=110,
                top=2,
                lanczos_steps=3,
                examples=12,
                noise_batches=2,
                batch_size=8,
                noise_forms=1,
                heights=(0.1,),
            ),
            Complexity(every=100, examples=12, pairs=2, points=3),
            Examples(every=90, examples=12, mode="eval"),
            Evaluation(every=80, examples=12),
            ExitTimes(
                every=130,
                replicas=2,
                batch_size=8,
                max_steps=4,
                radius=2.0,
                barrier=1.0,
                basin=True,
                check_every=2,
                examples=12,
                descent_steps=2,
            ),
            HessianVectors(
                every=100,
                vectors=2,
                lanczos_steps=3,
                top=2,
                examples=12,
                noise_batches=2,
                batch_size=8,
            ),
            PerturbedLoss(
                every=120,
                sigmas=(0.1,),
                draws=1,
                examples=12,
                batches=2,
                batch_size=8,
                curvature=1,
                lanczos_steps=2,
                gradient_draws=1,
            ),
            PriorKernel(networks=4, groups=2, examples=12, initialize=_drawn_anew),
            Sharpness(
                every=110,
                epsilons=(1e-3, 1e-2),
                iterations=2,
                sigmas=(0.1,),
                draws=1,
                examples=12,
                corner=True,
            ),
            SmoothedGradient(every=120, draws=2, batch_size=8, neighbours=1, examples=12),
            NoiseProbe(every=40, batches=3, batch_size=8, moments="coordinates"),
            NoiseProbe(every=70, batches=2, batch_size=8, replacement=False, name="no_replacement"),
        ]
    return found
