"""Small traces that tests write."""

import numpy as np

import tracelab
from tracelab.contracts import Variable
from tracelab_collectors import (
    Basin,
    Complexity,
    HessianVectors,
    PerturbedLoss,
    PriorKernel,
    Sharpness,
    SmoothedGradient,
)
from tracelab_collectors.averages import averages_variables
from tracelab_collectors.workers import variables as of_workers

LAYERS = {"fc.weight": (4, 6), "fc.bias": (4,)}
PER_LAYER = 4
BATCHES = 64
STEPS = (0, 10, 100)


def write_noise(writer, step, rng, scale=1.0, batches=BATCHES):
    """Append one probe of Gaussian gradients around a full-data gradient of ones."""
    sampled = scale * rng.standard_normal((batches, len(LAYERS) * PER_LAYER)) + 1
    projected = scale * rng.standard_normal((batches, len(LAYERS), 5)) + 1
    deviation = rng.chisquare(10, (batches, len(LAYERS))) * scale**2
    writer.append(
        "noise",
        step=step,
        sampled=sampled,
        mean_sampled=np.ones(sampled.shape[1:]),
        projected=projected,
        mean_projected=np.ones(projected.shape[1:]),
        squared_deviation=deviation,
        mean_squared_norm=np.full(len(LAYERS), 4.0),
    )


def define_hessian(writer):
    """Declare a group of curvature."""
    variables = HessianVectors(sketch=None).variables()
    writer.define("hessian", kind="hessian", variables=variables, attrs={"n_weights": 28})


def write_hessian(writer, step, rng, scale=1.0, batches=BATCHES):
    """Append one row of curvature, and the step's own row: of a matrix with positive forms."""
    share = np.full((2, len(LAYERS)), 0.5)
    alphas = 3 + rng.standard_normal((2, 4))
    writer.append(
        "hessian",
        step=step,
        numel=[24, 4],
        loss_gradient_norm=1.0,
        vector_seed=np.arange(6),
        form=scale * rng.exponential(1.0, (len(LAYERS), 6)),
        product_squared_norm=scale * rng.exponential(1.0, 6),
        lanczos_diagonal=scale * alphas,
        lanczos_beside=np.full((2, 4), 0.5),
        eigenvalue=scale * np.array([4.0, 3.0]),
        residual=np.full(2, 0.01),
        eigenvector_share=share,
        gradient_along=np.ones(2),
        noise_squared_norm=scale * rng.exponential(1.0, batches),
        noise_overlap=scale * rng.standard_normal(batches),
        noise_along=scale * rng.standard_normal((batches, 2)),
        noise_form=scale * rng.exponential(1.0, max(batches // 2, 1)),
    )


def define_basin(writer, exits=True):
    """Declare a basin, and the exits of replicas from it."""
    writer.define("basin", kind="basin", variables=Basin().variables())
    if not exits:
        return
    by_replica = ("step", "replica")
    names = {"time": "step", "censored": "1", "criterion": "1"}
    variables = [Variable(name, by_replica, units) for name, units in names.items()]
    writer.define(
        "exits", kind="exits", variables=[*variables, Variable("barrier", ("step",), "loss")]
    )


def write_basin(writer, step, rng, scale=1.0, batches=BATCHES):
    """Append a quadratic basin with Gaussian noise, and exits at a constant rate over .4."""
    curvature, heights = np.array([0.3, 0.1]), np.array([0.05, 0.2, 0.8])
    writer.append(
        "basin",
        step=step,
        memory=1.0,
        median_step=0.1,
        loss=0.5,
        eigenvalue=curvature,
        residual=np.full(2, 1e-6),
        gradient_along=np.zeros(2),
        gradient_squared_norm=1e-6,
        noise_along=scale * 0.5 * rng.standard_normal((batches, 2)),
        noise_squared_norm=scale * rng.exponential(0.08, batches),
        quadratic_rise=heights,
        profile_loss=0.5 + np.broadcast_to(heights[:, None], (2, 3, 2)),
        noise_form=scale * rng.exponential(0.016, max(batches // 2, 1)),
        kept=np.ones(batches),
    )
    writer.append(
        "exits",
        step=step,
        time=np.ceil(rng.exponential(60, 12)),
        censored=np.zeros(12),
        criterion=np.full(12, 2.0),
        barrier=0.4,
    )


def define_sharpness(writer):
    """Declare a group of losses around the weights."""
    writer.define("sharpness", kind="sharpness", variables=Sharpness().variables())


def write_sharpness(writer, step, rng, scale=1.0, draws=8):
    """Append losses around the weights: of a quadratic of trace 1, but for noise."""
    sigma = np.array([0.1, 0.3, 1.0])
    epsilon = np.array([1e-3, 1e-2])
    rises = sigma[:, None] ** 2 / 2 * (1 + 0.1 * rng.standard_normal((2, 2, draws))[..., None, :])
    noisy = np.moveaxis(rises, 1, 2) * scale
    writer.append(
        "sharpness",
        step=step,
        loss=0.5,
        gradient_norm=scale * 0.1,
        epsilon=epsilon,
        box_gradient=np.full(2, scale * 0.5),
        max_loss=0.5 + scale * 3.0 * np.broadcast_to(epsilon[:, None], (2, 2, 1)),
        iterations=np.full((2, 2, 1), 10),
        evaluations=np.full((2, 2, 1), 12),
        converged=np.zeros((2, 2, 1), dtype=bool),
        sigma=sigma,
        noise_loss=0.5 + noisy,
        noise_error=0.2 + noisy,
        error=0.2,
        radius=np.array([0.05]),
        ascent_loss=np.full((2, 1), 0.5 + 0.01 * scale),
    )


def define_complexity(writer):
    """Declare a group of norms, margins and changes between inputs."""
    writer.define("complexity", kind="complexity", variables=Complexity().variables())


def write_complexity(writer, step, rng, scale=1.0, examples=BATCHES):
    """Append norms of a matrix and a vector, and margins of which most are positive."""
    pairs = 8
    writer.append(
        "complexity",
        step=step,
        norm=scale * np.array([2.0, 0.5]),
        distance=np.array([1.0, 0.1]) * np.sqrt(step),
        spectral_norm=[1.5, np.nan],
        spectral_residual=[0.0, np.nan],
        log_spectral_norm=[np.log(1.5), 0.0],
        log_norm=[np.log(2.0), 0.0],
        stable_rank=[(2 / 1.5) ** 2, 0.0],
        margin=scale * (2 + rng.standard_normal(examples)),
        input_gradient_norm=scale * rng.exponential(1.0, examples),
        class_changes=rng.poisson(2.0, pairs),
        unit_changes=rng.poisson(9.0, pairs),
        length=np.ones(pairs),
        slope=scale * rng.exponential(1.0, pairs),
        path_norm=3.0,
    )


def define_smoothed_gradient(writer):
    """Declare a group of gradients one step ahead."""
    variables = SmoothedGradient(neighbours=3).variables()
    writer.define("smoothed_gradient", kind="smoothed_gradient", variables=variables)


def write_smoothed_gradient(writer, step, rng, scale=1.0, draws=BATCHES):
    """Append gradients that point away from zero, where the weights go, and noise on them."""
    layers, directions = len(LAYERS), 6
    weight = np.exp(-step / 50) * np.linspace(1, 2, layers * directions).reshape(layers, -1)
    noise = 0.1 * rng.standard_normal((draws, layers, directions))
    near = 0.1 * rng.standard_normal((3, layers, directions))
    writer.append(
        "smoothed_gradient",
        step=step,
        member=np.eye(layers),
        numel=[24, 4],
        learning_rate=np.full(layers, 0.1),
        loss=0.5,
        weight=weight,
        gradient=scale * weight,
        squared_norm=scale * np.sum(weight**2, -1),
        noise_squared_norm=scale * np.sum(noise**2, -1),
        smoothed_loss=np.full(draws, 0.4),
        smoothed=scale * (0.9 * weight + noise),
        smoothed_squared_norm=scale * np.sum(weight**2, -1),
        neighbour_gradient=scale * (weight + near),
        neighbour_outward=scale * np.sum((weight + near) * near, -1),
        neighbour_squared_norm=scale * np.sum((weight + near) ** 2, -1),
    )


def define_averages(writer):
    """Declare a group of averages beside last weights."""
    writer.define(
        "averages", kind="averages", variables=averages_variables(), attrs={"sets": ["data"]}
    )


def write_averages(writer, step, rng, scale=1.0, draws=BATCHES):
    """Append averages over two windows, which are lower and flatter than the last weights."""
    windows, place = 2, np.array([0.0, 0.5, 1.0])
    loss = np.broadcast_to([0.6, 0.4], (windows, 1, 2))
    rise = scale * 0.1 * rng.exponential([[2.0], [1.0]], (windows, 2, draws))
    slope = 0.1 * rng.standard_normal((windows, 2, draws))
    moved = loss[:, 0, :, None] + rise
    writer.append(
        "averages",
        step=step,
        learning_rate=0.1,
        position=place,
        window_start=[0.0, step / 2],
        n_iterates=[20.0, 10.0],
        distance=scale * np.ones((windows, len(LAYERS))),
        spread=scale * np.full((windows, len(LAYERS)), 2.0),
        set_loss=loss,
        set_loss_se=np.full((windows, 1, 2), 0.05),
        loss_difference=np.full((windows, 1), -0.2),
        loss_difference_se=np.full((windows, 1), 0.01),
        loss_units=np.full((windows, 1), 30.0),
        error_difference=np.full((windows, 1), -0.1),
        error_difference_se=np.full((windows, 1), 0.02),
        error_units=np.full((windows, 1), 500.0),
        noise_squared_norm=rng.exponential(1.0, (windows, 2, draws)),
        moved_loss=np.stack([moved - slope, moved + slope], -1),
        line_loss=0.4 + 0.2 * np.broadcast_to((1 - place) ** 2, (windows, 3)),
    )


def define_perturbed_loss(writer):
    """Declare a group of losses under noise, of a run of plain SGD with held-out data."""
    attrs = {"n_weights": 28, "n_data": 1_000, "n_examples": 1_000, "n_held_out": 500}
    attrs |= {"batch_size": 8, "replacement": True, "held_out": True, "plain_sgd": True}
    writer.define(
        "perturbed_loss",
        kind="perturbed_loss",
        variables=PerturbedLoss().variables(),
        attrs={**attrs, "all_layers": True},
    )


def write_perturbed_loss(writer, step, rng, scale=1.0, batches=BATCHES, draws=8):
    """Append losses and errors under noise: of a quadratic, less than one."""
    sigma = np.array([1e-3, 1e-2, 0.1])
    rises = scale * sigma[:, None, None] ** 2 * rng.exponential(1.0, (2, 2, 3, 2, draws))
    change = scale * sigma[:, None] ** 2 * rng.exponential(1.0, (3, 2))
    writer.append(
        "perturbed_loss",
        step=step,
        sigma=sigma,
        loss=np.array([0.4, 0.5]),
        error=np.array([0.1, 0.2]),
        loss_se=np.array([0.01, 0.02]),
        error_se=np.array([0.01, 0.02]),
        error_low=0.0,
        error_high=1.0,
        max_loss=0.7,
        distance=np.sqrt(step),
        noise_loss=0.4 + rises,
        noise_error=0.1 + rises,
        noise_variance=np.array([1.0, 0.5]),
        noise_log_det=np.array([0.0, -2.0]),
        eigenvalue=np.array([4.0, 3.0]),
        gradient_change=change,
        deviation=scale * rng.exponential(1.0, batches),
        variance=scale * 0.9,
        example_variance=scale * 7.2,
        example_variance_se=scale * 0.4,
        max_gradient_norm=scale * 3.0,
    )


def walk(rng, count, directions=8):
    """Return the projected weights of so many steps of a random walk."""
    return rng.standard_normal((count, len(LAYERS), directions)).cumsum(axis=0)


def define_workers(writer):
    """Declare what workers of a job have, and micro-batches of their steps."""
    writer.define("worker", kind="workers", variables=of_workers())
    writer.define("micro_batches", kind="noise", attrs={"batch_size": 8})


def write_workers(writer, step, rng, scale=1.0, workers=4):
    """Append weights and gradients that share a mean, and as many micro-batches."""

    def around(mean):
        return scale * (mean + rng.standard_normal((workers, len(LAYERS), 64)))

    writer.append(
        "worker",
        step=step,
        gradient_projected=around(1.0),
        gradient_squared_norm=np.full((workers, len(LAYERS)), 128.0),
        gradient_variance=np.full((workers, len(LAYERS)), scale * 32.0),
        weight_projected=around(5.0),
        weight_squared_norm=np.full((workers, len(LAYERS)), 1700.0),
    )
    writer.append("micro_batches", step=step, projected=around(1.0))


def define_prior_kernel(writer):
    """Declare a group of kernels of networks at random."""
    writer.define(
        "prior_kernel",
        kind="prior_kernel",
        variables=PriorKernel().variables(),
        attrs={"n_networks": 80, "n_units": 5, "n_examples": 8},
    )


def write_prior_kernel(writer, step, rng, scale=1.0, groups=4):
    """Append kernels of Gaussian functions of 8 examples, in ten classes."""
    root = np.eye(8) + 0.5
    outputs = rng.standard_normal((groups, 100, 8)) @ root
    writer.append(
        "prior_kernel",
        step=step,
        kernel=scale**2 * np.einsum("gmi,gmj->gij", outputs, outputs) / 100,
        mean=scale * outputs.mean(axis=1),
        fourth=scale**4 * (outputs**4).mean(axis=1),
        label=np.arange(8),
        index=np.arange(8),
    )


def define_noise(writer):
    writer.define(
        "noise",
        attrs={"batch_size": 8, "replacement": True, "n_data": 1_000},
        coordinates=(np.repeat([0, 1], PER_LAYER), np.tile(np.arange(PER_LAYER), 2)),
    )


def write_trace(path, *, steps=STEPS, distances=200, seed=0):
    """Write a small trace that every shipped analysis can read."""
    rng = np.random.default_rng(seed)
    with tracelab.create(path, layers=LAYERS) as writer:
        define_noise(writer)
        for step in steps:
            write_noise(writer, step, rng)
        define_hessian(writer)
        curved = np.random.default_rng(seed + 1)
        for step in steps:
            write_hessian(writer, step, curved)
        define_basin(writer)
        left = np.random.default_rng(seed + 2)
        for step in steps:
            write_basin(writer, step, left)
        define_sharpness(writer)
        for step in steps:
            write_sharpness(writer, step, curved)
        define_complexity(writer)
        complex_rows = np.random.default_rng(seed + 3)
        for step in steps:
            write_complexity(writer, step, complex_rows)
        define_smoothed_gradient(writer)
        for step in steps:
            write_smoothed_gradient(writer, step, complex_rows)
        define_averages(writer)
        for step in steps:
            write_averages(writer, step, complex_rows)
        define_perturbed_loss(writer)
        perturbed = np.random.default_rng(seed + 3)
        for step in steps:
            write_perturbed_loss(writer, step, perturbed)
        define_workers(writer)
        for step in range(20):
            write_workers(writer, step, curved)
        define_prior_kernel(writer)
        kernels = np.random.default_rng(seed + 5)
        for step in steps:
            write_prior_kernel(writer, step, kernels)
        for step in range(max(steps, default=-1) + 1):
            writer.append("steps", step=step, learning_rate=0.1)
        projected = walk(np.random.default_rng(seed + 4), distances)
        for step in range(distances):
            distance = np.sqrt(step) * np.array([1.0, 0.1]) * (1 + 0.01 * rng.standard_normal(2))
            writer.append(
                "weights",
                step=step,
                distance=distance,
                norm=1 + distance,
                projected=projected[step],
            )
        for step in range(distances - 1):
            # What plain SGD at the rate above would have made these steps of.
            slope = (projected[step] - projected[step + 1]) / 0.1
            writer.append("gradients", step=step, projected=slope)
    return path
