"""Bounds by information of a run that was recorded."""

import numpy as np
import pytest
from plans import computed

import tracelab
from tracelab import planning
from tracelab.typing import Assumption, Status
from tracelab_analyses.information_bound import ANALYSIS


def test_of_a_recorded_run(tmp_path):
    torch = pytest.importorskip("torch")
    from tracelab_collectors import PerturbedLoss, misclassified

    generator = torch.Generator().manual_seed(0)
    images = torch.randn(260, 6, generator=generator)
    labels = (images[:, 0] > 0).long()
    train, held = (torch.utils.data.TensorDataset(images[part], labels[part])
                   for part in (slice(60), slice(60, None)))  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def loss(model, batch):
            return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

        collector = PerturbedLoss(
            held_out=held, every=10, sigmas=(0.01, 0.1, 0.3), draws=4, error=misclassified,
            batches=8, batch_size=10,
        )  # fmt: skip
        path = tmp_path / "run.zarr"
        with tracelab.attach(
            model, optimizer, path, collectors=[collector], loss=loss, data=train
        ) as session:
            for _ in range(25):
                optimizer.zero_grad()
                loss(model, train[torch.randint(60, (10,))]).backward()
                optimizer.step()
                session.log(injected_noise=0.01)
    with tracelab.open(path) as trace:
        result, failures = computed(planning.plan(ANALYSIS, trace, ANALYSIS.resolve({})), trace)
        held_out = trace.groups["perturbed_loss"]["error"].load().values
    assert failures == ()
    row = result.isel(layer=0)
    assert int(row["status"]) == Status.OK
    assert row["step"].values.tolist() == [0, 10, 20, 25]
    np.testing.assert_array_equal(row["gap"], held_out[:, 1] - held_out[:, 0])
    wrong = (model(images).argmax(1) != labels).double().numpy()
    assert float(row["gap"][-1]) == pytest.approx(wrong[60:].mean() - wrong[:60].mean())
    bound = row["bound"].isel(step=-1)
    assert np.isfinite(bound).all()
    assert float(bound.sel(theory="minkowski")) < float(bound.sel(theory="neu"))
    assert (bound.sel(theory=["neu", "minkowski", "pensia"]) > float(row["gap_high"][-1])).all()
    table = row["assumption_holds"]
    assert int(table.sel(theory="neu", assumption="plain_sgd")) == Assumption.HOLDS
    assert int(table.sel(theory="negrea", assumption="full_batch")) == Assumption.FAILS
