"""Prints how often intervals of `update_noise` hold the truth, and what it finds on digits.

    python data/study_update_noise.py [runs]
    python data/study_update_noise.py digits

Runs of `torch.optim.SGD` on 30 weights whose gradients are white noise around a mean, so that the
truth is known: the figures of `docs/statistics.md`. Besides momentum's response updates carry noise
of their own, coordinates have steps of their own, or the mean gradient walks.
"""

import sys
import tempfile

import numpy as np
import torch
from scipy import stats
from sklearn.datasets import load_digits

import tracelab
from tracelab_analyses.momentum import momentum_of
from tracelab_analyses.update_noise import update_noise
from tracelab_collectors import Gradients, Weights

WEIGHTS, RATE, MOMENTUM = 30, 0.01, 0.9
NAMES = ("gain", "noise", "observed", "sums", "gradient_sums")
CASES = {
    # Deviation of added noise over the rate, steps of coordinates, walk of the mean in a step.
    "momentum alone": (0.0, np.ones(WEIGHTS), 0.0),
    "the mean walks": (0.0, np.ones(WEIGHTS), 0.02),
    "noise added to updates": (2.0, np.ones(WEIGHTS), 0.0),
    "two steps of coordinates": (0.0, np.repeat([1.0, 2.0], WEIGHTS // 2), 0.0),
}


def run(steps, added, steps_of, walk, seed):
    """Return the result of one run, as floats by name."""
    rng = np.random.default_rng(seed)
    sizes = np.unique(steps_of)
    parts = [np.flatnonzero(steps_of == size) for size in sizes]
    parameters = [torch.zeros(part.size, dtype=torch.float64) for part in parts]
    optimizer = torch.optim.SGD(
        [
            {"params": [each], "lr": RATE * size}
            for each, size in zip(parameters, sizes, strict=True)
        ],
        momentum=MOMENTUM,
    )
    mean = 0.3 + np.cumsum(walk * rng.standard_normal((steps, WEIGHTS)), axis=0)
    gradients = mean + rng.standard_normal((steps, WEIGHTS))
    own = added * RATE * rng.standard_normal((steps, WEIGHTS))
    weights = []
    for gradient, noise in zip(gradients, own, strict=True):
        now = np.empty(WEIGHTS)
        for each, part in zip(parameters, parts, strict=True):
            now[part] = each.numpy()
            each.grad = torch.tensor(gradient[part])
            each += torch.tensor(noise[part])
        weights.append(now)
        optimizer.step()
    said = np.array({"name": "SGD", "momentum": MOMENTUM}, dtype=object)
    found = update_noise(
        np.array(weights)[None], gradients[None], np.arange(steps), np.full(steps, RATE), None, said
    )
    return {name: values[0] for name, values in found.items()}


def truth(added, steps_of, walk):
    """Return what estimates are of; in sums over time a mean that walks is noise as well."""
    momentum = momentum_of({"name": "SGD", "momentum": MOMENTUM})
    square = np.square(steps_of).mean()
    noise = momentum.noise * square + added**2
    sums = momentum.gain**2 * square + added**2
    own = np.nan if walk else 1.0
    return dict(zip(NAMES, (momentum.gain * steps_of.mean(), noise, noise, sums, own), strict=True))


def main(runs=200):
    """Print a row for each case and estimate."""
    print("| case | steps | of | truth | mean | sd | standard error | 95 % interval holds it |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for case, (added, steps_of, walk) in CASES.items():
        known = truth(added, steps_of, walk)
        for steps in (600, 2_000):
            found = [run(steps, added, steps_of, walk, seed) for seed in range(runs)]
            for name in NAMES:
                row = [(each[name], each[f"{name}_se"], each["n_blocks"]) for each in found]
                row = np.array([each for each in row if np.isfinite(each[0])])
                if len(row) < runs / 2 or np.isnan(known[name]):
                    continue
                value, error, blocks = row.T
                inside = abs(value - known[name]) <= stats.t.ppf(0.975, blocks - 1) * error
                print(
                    f"| {case} | {steps} | {name} | {known[name]:.4g} | {value.mean():.4g} | "
                    f"{value.std():.2g} | {error.mean():.2g} | {inside.mean():.3f} of {len(row)} |",
                    flush=True,
                )


def on_digits(steps=4_000, size=32):
    """Print a row for a network of 64, 32 and 10 units under each optimizer."""
    images, labels = load_digits(return_X_y=True)
    inputs, classes = torch.tensor(images[:1200] / 16, dtype=torch.float32), torch.tensor(labels)
    optimizers = {
        "SGD, momentum .9": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
        "Adam": lambda p: torch.optim.Adam(p, lr=0.001),
    }
    sketch = tracelab.Project(256)
    collectors = [Weights(every=1, sketch=sketch), Gradients(every=1, sketch=sketch)]
    names = ("gain", "noise", "update_noise", "observed", "gradient_sums", "explained")
    print("| " + " | ".join(["optimizer", "loss at the end", *names]) + " |")
    print("|" + " --- |" * (len(names) + 2))
    for label, make in optimizers.items():
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
        optimizer = make(net.parameters())
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/run.zarr"
            with tracelab.attach(net, optimizer, path, collectors=collectors):
                for _ in range(steps):
                    batch = torch.randint(len(inputs), (size,))
                    optimizer.zero_grad()
                    loss = torch.nn.functional.cross_entropy(net(inputs[batch]), classes[batch])
                    loss.backward()
                    optimizer.step()
            trace = tracelab.open(path)
            network = [
                trace.groups[kind]["projected"].values[:steps].astype(float).sum(axis=1)[None]
                for kind in ("weights", "gradients")
            ]
            rates = trace.steps["learning_rate"].values[:steps]
        found = update_noise(*network, np.arange(steps), rates)
        told = [f"{found[name][0]:.4g} ± {found[f'{name}_se'][0]:.2g}" for name in names]
        print("| " + " | ".join([label, f"{loss.item():.3f}", *told]) + " |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["digits"]:
        on_digits()
    else:
        main(*map(int, sys.argv[1:]))
