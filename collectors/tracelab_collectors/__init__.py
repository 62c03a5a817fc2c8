"""Collectors for PyTorch: what `tracelab.attach` records of a training run."""

from tracelab_collectors.averages import measure_averages
from tracelab_collectors.basin import Basin
from tracelab_collectors.complexity import Complexity
from tracelab_collectors.evaluation import Evaluation, misclassified
from tracelab_collectors.examples import Examples
from tracelab_collectors.exit_times import ExitTimes
from tracelab_collectors.gradients import Gradients
from tracelab_collectors.hessian_vectors import HessianVectors
from tracelab_collectors.live_examples import LiveExamples
from tracelab_collectors.micro_batches import MicroBatches
from tracelab_collectors.noise_probe import NoiseProbe
from tracelab_collectors.optimizer_state import OptimizerState
from tracelab_collectors.perturbed_loss import PerturbedLoss
from tracelab_collectors.prior_kernel import PriorKernel
from tracelab_collectors.sharpness import Sharpness
from tracelab_collectors.smoothed_gradient import SmoothedGradient
from tracelab_collectors.statistics import Statistics
from tracelab_collectors.weights import Weights
from tracelab_collectors.workers import Workers

__all__ = [
    "Basin",
    "Complexity",
    "Evaluation",
    "Examples",
    "ExitTimes",
    "Gradients",
    "HessianVectors",
    "LiveExamples",
    "MicroBatches",
    "NoiseProbe",
    "OptimizerState",
    "PerturbedLoss",
    "PriorKernel",
    "Sharpness",
    "SmoothedGradient",
    "Statistics",
    "Weights",
    "Workers",
    "measure_averages",
    "misclassified",
]
