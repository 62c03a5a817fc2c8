"""The global generators of random numbers: torch's on every device, Python's and NumPy's.

NumPy's is the legacy one: code of users draws from it, whether it should or not.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["forked_generators", "generator_states"]


@contextmanager
def forked_generators(seed: int) -> Iterator[None]:
    """Seed every global generator in use for the block, and put all back behind it.

    These are torch's on the CPU and on every CUDA device, Python's and NumPy's.
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    cuda = torch.cuda.is_initialized()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count() if cuda else 0)):
            torch.default_generator.manual_seed(seed)
            if cuda:
                torch.cuda.manual_seed_all(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def generator_states() -> tuple[list[bytes], tuple[str, str]]:
    """Return the states of torch's generators, and of Python's and NumPy's."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():
        states += torch.cuda.get_rng_state_all()
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002
    text = f"{numpy['state']['key'].tobytes()!r} {numpy['state']['pos']} {numpy['gauss']}"
    return [state.numpy().tobytes() for state in states], (repr(random.getstate()), text)
