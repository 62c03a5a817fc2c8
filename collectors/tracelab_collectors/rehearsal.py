"""One evaluation of the user's loss before training starts, which leaves no mark."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from tracelab.errors import UsageError
from tracelab_collectors.collector import Recording, Run
from tracelab_collectors.frozen import FrozenLoss
from tracelab_collectors.generators import forked_generators
from tracelab_collectors.indexed import Indexed

__all__ = ["refusing", "rehearse_loss"]


@contextmanager
def refusing(what: str, where: str, remedy: str) -> Iterator[None]:
    """Turn whatever the user's code raises in the block into a UsageError that says where."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"{what} fails {where}: {type(error).__name__}: {error}; {remedy}"
        ) from error


def rehearse_loss(run: Run, recordings: Mapping[str, Recording]) -> None:
    """Evaluate the loss and its gradient on the first batch of the data, if a probe will.

    Weights, buffers and generators are as before.

    Parameters
    ----------
    run : Run
        Its loss and data.
    recordings : mapping of str to Recording
        By group; probes say in their attributes of how many examples a batch is. Those that do
        not have tried the loss by themselves, in their own way, or do not need it.

    Raises
    ------
    UsageError
        If the loss fails, is no scalar or is not finite.
    """
    sizes = [
        int(recording.attrs["batch_size"])
        for recording in recordings.values()
        if recording.probe and {"batch_size", "n_data"} <= recording.attrs.keys()
    ]
    if not sizes or run.loss is None or run.data is None:
        return
    examples = Indexed.of(run.data, run.data_size, run.device)
    count = min(examples.size, max(sizes))
    where = f"on the first {count} examples of data"
    remedy = "it is called with the model and a batch as data gives it"
    with forked_generators(run.seed), refusing("loss(model, batch)", where, remedy):
        frozen = FrozenLoss(run.loss, run.model, run.parameters)
        loss, _ = frozen.gradient(examples.batch(torch.arange(count)))
    value = float(loss)
    if not math.isfinite(value):
        raise UsageError(
            f"loss(model, batch) is {value} {where}, at the weights of now; no gradient can be "
            "measured, look at the loss and at the data"
        )
