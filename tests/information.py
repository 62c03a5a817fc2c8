"""What `information_bound` takes, of runs in which every estimate is exact."""

import numpy as np

from tracelab_analyses.information_bound import information_bound

SIGMA = np.array([0.03, 0.1, 0.3, 1.0])
BATCHES, DRAWS = 8, 3


def rows(step, variance, sensitivity, *, gap=0.0, flatness=0.0, **given):
    """Return what a kernel takes: rows of which every estimate is exact.

    Variance by row, sensitivity over sigma^2 by row and level, gap and flatness alike for all.
    """
    step = np.asarray(step)
    count = len(step)
    variance = np.broadcast_to(variance, count)
    ratio = np.broadcast_to(sensitivity, (count, SIGMA.size))
    means = np.stack([np.full(count, 0.1), np.full(count, 0.1 + gap)], axis=1)
    noisy = np.full((count, 2, 2, SIGMA.size, 2, DRAWS), np.nan)
    noisy[:, :, 0] = means[:, :, None, None, None] + 0.01
    noisy[:, 1, 0] -= np.reshape(flatness * np.ones(SIGMA.size), (-1, 1, 1))
    steps = int(step[-1])
    found = {
        "step": step,
        "sigma": np.broadcast_to(SIGMA, (count, SIGMA.size)),
        "loss": means, "error": means, "loss_se": 0 * means + 0.01, "error_se": 0 * means + 0.01,
        "max_loss": np.full(count, 0.5),
        "noise_loss": noisy, "noise_error": noisy,
        "gradient_change": np.repeat((ratio * SIGMA**2)[..., None], DRAWS, axis=-1),
        "deviation": np.repeat(variance[:, None], BATCHES, axis=-1),
        "example_variance": np.full(count, 3.0),
        "max_gradient_norm": np.full(count, 2.0),
        "error_low": np.zeros(count), "error_high": np.ones(count),
        "example_variance_se": np.full(count, 0.3),
        "n_weights": 5, "n_data": 100, "n_examples": 100, "n_held_out": 50,
        "batch_size": 4, "replacement": True, "plain_sgd": True, "all_layers": True,
        "every_step": np.arange(steps), "learning_rate": np.full(steps, 0.1),
        "plain_steps": np.ones(steps),
    }  # fmt: skip
    return found | given


def bounds(*args, parameters=None, **given):
    out = information_bound(**rows(*args, **given), **(parameters or {}))
    return {name: values[0] for name, values in out.items()}
