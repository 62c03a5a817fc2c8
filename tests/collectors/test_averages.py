"""Averages of stored weights: of known chains, of a network by NumPy, of batch normalisation."""

import copy

import numpy as np
import pytest
import torch
from proofs.states import bits, generators
from torch import Tensor, nn

import tracelab
from tracelab.errors import NotRecordedError, UsageError
from tracelab_collectors import measure_averages, misclassified
from tracelab_collectors.batch_norm import recompute
from tracelab_collectors.stored_weights import StoredWeights


class Point(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(size - 2, dtype=torch.float64))
        self.b = nn.Parameter(torch.zeros(2, 1, dtype=torch.float64))

    def flat(self) -> Tensor:
        return torch.cat([self.a, self.b.flatten()])


def squares(model: nn.Module, batch: list[Tensor]) -> Tensor:
    """Half the squared residuals of a linear model, one value an example."""
    return 0.5 * (batch[0] @ model.flat() - batch[1]).square()


def mean_squares(model: nn.Module, batch: list[Tensor]) -> Tensor:
    return squares(model, batch).mean()


def stored(path, weights, rate=0.1, sketches=("full",)):
    """Write rows of weights, a step of 2 apart."""
    size = weights.shape[1]
    with tracelab.create(path, {"a": (size - 2,), "b": (2, 1)}) as writer:
        project = tracelab.Project(64)
        for number, row in enumerate(weights):
            arrays = {}
            if "full" in sketches:
                arrays["full"] = row
            if "projected" in sketches:
                edges = ((0, size - 2), (size - 2, size))
                arrays["projected"] = [project.project(row[i:j], i) for i, j in edges]
            writer.append("weights", step=2 * number, norm=[1, 1], distance=[0, 0], **arrays)
            writer.append("steps", step=number, learning_rate=rate)
    return path


def linear(n=50, d=7, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)), rng.standard_normal(n)


def table(x, y):
    return torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y))


def measured(path, out, *args, **options):
    measure_averages(path, out, *args, **options)
    with tracelab.open(out) as trace:
        return trace.groups["averages"].load()


def test_everything_of_a_linear_model_is_known(tmp_path) -> None:
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((10, 7)).astype(np.float32).astype(float)
    (x, y), (x2, y2) = linear(), linear(30, seed=2)
    path = stored(tmp_path / "run.zarr", weights)
    rate, line = 0.3, (-1.0, 0.0, 0.5, 1.0)
    found = measured(
        path, tmp_path / "out.zarr", Point(7), loss=mean_squares, data=table(x, y),
        windows=[(0, 18), (5, 12), (10, 18)], sets={"test": table(x2, y2)}, error=squares,
        draws=6, batch_size=5, learning_rate=rate, line=line, data_batch_size=16,
    )  # fmt: skip
    # Rows by the last step; where a row has fewer windows there is nothing.
    assert found["step"].values.tolist() == [12, 18]
    assert found["window_start"].values[0, 0] == 6
    assert np.isnan(found["window_start"].values[0, 1])
    assert found["window_start"].values[1].tolist() == [0, 10]
    for place, (first, last) in {(0, 0): (3, 6), (1, 0): (0, 9), (1, 1): (5, 9)}.items():
        row = found.isel(step=place[0], window=place[1])
        rows = weights[first : last + 1]
        mean, end = rows.mean(0), rows[-1]
        assert row["n_iterates"] == len(rows)
        for layer, part in enumerate((slice(0, 5), slice(5, 7))):
            exact = np.linalg.norm(mean[part] - end[part])
            assert row["distance"][layer] == pytest.approx(exact, rel=1e-12)
            spread = np.sqrt(np.mean(np.sum((rows - mean)[:, part] ** 2, 1)))
            assert row["spread"][layer] == pytest.approx(spread, rel=1e-12)
        for number, (a, b) in enumerate(((x, y), (x2, y2))):
            each = 0.5 * np.stack([(a @ w - b) ** 2 for w in (end, mean)])
            difference = each[1] - each[0]
            for what in ("loss", "error"):
                np.testing.assert_allclose(row[f"set_{what}"][number], each.mean(1), rtol=1e-12)
                assert row[f"{what}_difference"][number] == pytest.approx(
                    difference.mean(), rel=1e-10
                )
            # 50 and 30 examples in pieces of no more than 16; a mean of each, or one an example.
            assert row["loss_units"][number] == (4, 2)[number]
            assert row["error_units"][number] == len(b)
            # One value an example: examples are paired.
            assert row["error_difference_se"][number] == pytest.approx(
                difference.std(ddof=1) / np.sqrt(len(b)), rel=1e-10
            )
            np.testing.assert_allclose(
                row["set_error_se"][number], each.std(1, ddof=1) / np.sqrt(len(b)), rtol=1e-10
            )
        h = x.T @ x / len(y)
        for point, w in enumerate((end, mean)):
            f = 0.5 * np.mean((x @ w - y) ** 2)
            pair = row["moved_loss"][point].values
            # f(v - u) + f(v + u) - 2 f(v) = u'Hu, f(v + u) - f(v - u) = 2 g'u, with u = rate omega.
            forms = pair.sum(1) - 2 * f
            assert (forms > 0).all()
            slopes = (pair[:, 1] - pair[:, 0]) / 2
            g = x.T @ (x @ w - y) / len(y)
            norms = row["noise_squared_norm"][point].values
            top = np.linalg.eigvalsh(h)
            assert (forms <= rate**2 * norms * top[-1] * (1 + 1e-9)).all()
            assert (forms >= rate**2 * norms * top[0] * (1 - 1e-9)).all()
            assert (np.abs(slopes) <= rate * np.linalg.norm(g) * np.sqrt(norms) + 1e-12).all()
        away = mean - end
        on_line = [0.5 * np.mean((x @ (end + p * away) - y) ** 2) for p in line]
        np.testing.assert_allclose(row["line_loss"], on_line, rtol=1e-12)


def test_penalties_are_those_of_the_noise(tmp_path) -> None:
    """E of half the second difference is eta^2 tr(H Sigma) / (2 b) for draws with replacement."""
    x, y = linear(40)
    weights = np.random.default_rng(1).standard_normal((3, 7))
    path = stored(tmp_path / "run.zarr", weights)
    draws, rate, b = 300, 0.2, 4
    found = measured(
        path, tmp_path / "out.zarr", Point(7), loss=mean_squares, data=table(x, y), windows=[1.0],
        draws=draws, batch_size=b, learning_rate=rate, line=(0.0,),
    ).isel(step=0, window=0)  # fmt: skip
    h, mean = x.T @ x / 40, weights.astype(np.float32).astype(float).mean(0)
    each = x * (x @ mean - y)[:, None]
    sigma = np.cov(each.T, bias=True) / b
    f = 0.5 * np.mean((x @ mean - y) ** 2)
    penalties = found["moved_loss"][1].values.mean(1) - f
    error = penalties.std(ddof=1) / np.sqrt(draws)
    exact = rate**2 / 2 * np.trace(h @ sigma)
    assert error < 0.08 * exact
    assert abs(penalties.mean() - exact) < 3 * error
    # Minibatches are the same at both points: examples' residuals differ, the pairing shows.
    correlation = np.corrcoef(found["noise_squared_norm"].values)[0, 1]
    assert correlation > 0.3


def test_the_average_of_a_stationary_chain(tmp_path) -> None:
    """SGD on a quadratic with white noise is AR(1): the variance of its mean is known.

    w' = rho w + s xi, rho = 1 - eta h: of n rows E|mean|^2 = (v/n) (1 + 2 sum (1 - k/n) rho^k).
    """
    rng = np.random.default_rng(0)
    d, n, rate, h = 600, 100, 0.1, 1.0
    rho = (1 - rate * h) ** 2
    chain = np.empty((n, d))
    chain[0] = rng.standard_normal(d)
    for k in range(1, n):
        chain[k] = rho * chain[k - 1] + np.sqrt(1 - rho**2) * rng.standard_normal(d)

    def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
        return 0.5 * h * model.flat().square().sum() + 0 * batch[0].sum()

    path = stored(tmp_path / "run.zarr", chain)
    data = torch.utils.data.TensorDataset(torch.zeros(4, 1))
    found = measured(
        path, tmp_path / "out.zarr", Point(d), loss=loss, data=data, windows=[1.0], draws=1
    ).isel(step=0, window=0)
    k = np.arange(1, n)
    variance = (1 + 2 * np.sum((1 - k / n) * rho**k)) / n
    end, average = found["set_loss"][0].values
    # Sums of d squares of normal numbers are known to sqrt(2 / d) of their mean.
    assert end == pytest.approx(0.5 * h * d, rel=4 * np.sqrt(2 / d))
    assert average == pytest.approx(0.5 * h * d * variance, rel=4 * np.sqrt(2 / d))
    assert average < 0.2 * end
    spread = float(np.sum(found["spread"].values ** 2))
    assert spread == pytest.approx(d * (1 - variance), rel=4 * np.sqrt(2 / d))


def test_without_a_model_distances_are_those_of_projections(tmp_path) -> None:
    weights = np.random.default_rng(0).standard_normal((6, 400))
    path = stored(tmp_path / "run.zarr", weights, sketches=("projected",))
    found = measured(path, tmp_path / "out.zarr", windows=[1.0]).isel(step=0, window=0)
    exact = np.linalg.norm((weights.mean(0) - weights[-1])[:398])
    # 64 directions: squares to sqrt(2 / 64), lengths to half of that.
    assert found["distance"][0] == pytest.approx(exact, rel=4 * np.sqrt(2 / 64) / 2)
    assert np.isnan(found["set_loss"]).all()
    # A layer of two weights is kept whole, in float32.
    exact = np.linalg.norm((weights.mean(0) - weights[-1])[398:])
    assert found["distance"][1] == pytest.approx(exact, rel=1e-6)
    with pytest.raises(NotRecordedError, match=r"record Weights\(sketch=tracelab.Full"):
        measure_averages(path, tmp_path / "no.zarr", Point(400), loss=mean_squares, data=[1])


def test_windows_are_read_piece_by_piece(tmp_path, monkeypatch) -> None:
    weights = np.random.default_rng(0).standard_normal((37, 9))
    with tracelab.open(stored(tmp_path / "run.zarr", weights)) as trace:
        known = StoredWeights.of(trace, "weights", whole=True)
        whole = known.window(3, 60)
        monkeypatch.setattr("tracelab_collectors.stored_weights.PIECE_BYTES", 1)
        pieces = known.window(3, 60)
    assert (whole.start, whole.stop, whole.count) == (4, 60, 29)
    np.testing.assert_array_equal(whole.average, pieces.average)
    np.testing.assert_array_equal(whole.squares, pieces.squares)
    rows = weights[2:31].astype(np.float32).astype(float)
    np.testing.assert_allclose(whole.average, rows.mean(0), atol=1e-15)
    np.testing.assert_array_equal(whole.last, rows[-1])


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def test_statistics_are_those_of_torchs_update_bn(inputs) -> None:
    ours, theirs = network(), network()
    batches = inputs.split(12)
    torch.optim.swa_utils.update_bn(batches, theirs)
    ours.eval()
    recompute(ours, ours, ((each, len(each)) for each in batches))
    for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(a, b)
    assert [each.momentum for each in ours.modules() if hasattr(each, "momentum")] == [0.1]
    assert not any(each.training for each in ours.modules())
    # Of batches of different sizes they are weighted: means are those of the data.
    uneven = inputs.split(20)
    recompute(ours, ours, ((each, len(each)) for each in uneven))
    torch.testing.assert_close(ours[1].running_mean, ours[0](inputs).detach().mean(0))


def recorded_network(tmp_path, net):
    shapes = {name: tuple(p.shape) for name, p in net.named_parameters()}
    rng = np.random.default_rng(0)
    rows = []
    with tracelab.create(tmp_path / "run.zarr", shapes) as writer:
        for step in range(4):
            flat = rng.standard_normal(sum(np.prod(s, dtype=int) for s in shapes.values()))
            rows.append(flat)
            n = len(shapes)
            writer.append("weights", step=step, norm=[1] * n, distance=[1] * n, full=flat)
    return np.array(rows), tmp_path / "run.zarr"


@pytest.mark.parametrize("batch_norm", ["recompute", "keep"])
def test_a_network_with_batch_normalisation(
    batch_norm, inputs, targets, cross_entropy, tmp_path
) -> None:
    net = network()
    rows, path = recorded_network(tmp_path, net)
    before = [*bits(net.state_dict()), *generators(), *bits([m.training for m in net.modules()])]
    data = torch.utils.data.TensorDataset(inputs, targets)
    found = measured(
        path, tmp_path / "out.zarr", net, loss=cross_entropy, data=data, windows=[1.0],
        error=misclassified, draws=2, learning_rate=0.1, batch_norm=batch_norm, line=(0.0, 1.0),
        data_batch_size=12,
    ).isel(step=0, window=0)  # fmt: skip
    # The model that was given, and the generators, are as they were.
    after = [*bits(net.state_dict()), *generators(), *bits([m.training for m in net.modules()])]
    assert before == after
    for point, flat in enumerate((rows[-1], rows.astype(np.float32).astype(float).mean(0))):
        own = copy.deepcopy(net)
        nn.utils.vector_to_parameters(torch.from_numpy(flat).float(), own.parameters())
        if batch_norm == "recompute":
            torch.optim.swa_utils.update_bn(inputs.split(12), own)
        own.eval()
        exact = cross_entropy(own, (inputs, targets)).item()
        assert found["set_loss"][0, point] == pytest.approx(exact, rel=1e-5)
        assert found["line_loss"][point] == pytest.approx(exact, rel=1e-5)
        wrong = float(misclassified(own, (inputs, targets)).mean())
        assert found["set_error"][0, point] == pytest.approx(wrong, abs=1e-7)


def test_no_rest_of_one_example_for_batch_normalisation(
    inputs, targets, cross_entropy, tmp_path
) -> None:
    net = network()
    _, path = recorded_network(tmp_path, net)
    # In pieces of 47 one of the 48 examples would be left over.
    data = torch.utils.data.TensorDataset(inputs, targets)
    found = measured(
        path, tmp_path / "out.zarr", net, loss=cross_entropy, data=data, windows=[1.0], draws=1,
        learning_rate=0.1, line=(0.0,), data_batch_size=47,
    )  # fmt: skip
    assert np.isfinite(found["set_loss"]).all()
    assert (found["loss_units"] == 2).all()


def test_bad_input(tmp_path, inputs, targets, cross_entropy) -> None:
    net = network()
    _, path = recorded_network(tmp_path, net)
    data = torch.utils.data.TensorDataset(inputs, targets)

    def measure(model=net, **options):
        known = {"loss": cross_entropy, "data": data, "windows": [1.0], "learning_rate": 1}
        options = known | options
        measure_averages(path, tmp_path / "no.zarr", model, **options)

    for options, message in (
        ({"draws": 0}, "draws must be an integer of at least 1"),
        ({"batch_norm": "no"}, "batch_norm must be one of recompute, keep"),
        ({"windows": []}, "must name one window or more"),
        ({"windows": [1.5]}, r"a share in \(0, 1\] or \(start, stop\), got 1.5"),
        ({"windows": np.array([])}, "must name one window or more"),
        ({"windows": 0.5}, r"windows must be a list of shares in .*, got 0\.5"),
        ({"windows": "ab"}, "windows must be a list of shares in .*, got 'ab'"),
        ({"windows": None}, "windows must be a list of shares in .*, got None"),
        ({"windows": [(0, 1, 2)]}, r"or \(start, stop\), got \(0, 1, 2\)"),
        ({"windows": np.arange(3)[None]}, r"or \(start, stop\), got array\(\[0, 1, 2\]\)"),
        ({"windows": [(0.5, 2)]}, r"or \(start, stop\), got \(0\.5, 2\)"),
        ({"windows": [("a", "b")]}, r"or \(start, stop\), got \('a', 'b'\)"),
        ({"windows": [None]}, r"or \(start, stop\), got None"),
        ({"windows": [True]}, r"or \(start, stop\), got True"),
        ({"windows": [float("nan")]}, r"or \(start, stop\), got nan"),
        ({"windows": [(0, 9)]}, "beyond the stored weights; they are stored from step 0 to 3"),
        ({"windows": [(-1, 3)]}, r"window \(-1, 3\) goes beyond the stored weights"),
        ({"line": ()}, r"line must be one or more finite numbers, got \(\)"),
        ({"line": np.array([])}, "line must be one or more finite numbers"),
        ({"line": 0.5}, "line must be one or more finite numbers, got 0.5"),
        ({"line": (0.0, float("nan"))}, "line must be one or more finite numbers"),
        ({"line": "01"}, "line must be one or more finite numbers, got '01'"),
        ({"group": ["weights"]}, r"no group \['weights'\] of weights"),
        ({"group": None}, "no group None of weights"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"seed": "a"}, "seed must be an integer of at least 0, got 'a'"),
        ({"batch_size": 2.5}, "batch_size must be an integer of at least 1, got 2.5"),
        ({"data_batch_size": 0}, "data_batch_size must be an integer of at least 1, got 0"),
        ({"model": "net"}, "model must be a torch.nn.Module .* got 'net'"),
        ({"model": None}, "loss=, data=: measure_averages measures them of a model; give model="),
        ({"loss": 3}, r"loss must be a callable loss\(model, batch\), got 3"),
        ({"error": "x"}, r"error must be a callable error\(model, batch\), got 'x'"),
        ({"data": 3}, "data must be a map-style dataset or a callable of indices, got 3"),
        ({"data_size": 49}, "data_size=49, and data has 48 examples"),
        ({"data_size": "a"}, "data_size must be a number of examples, got 'a'"),
        ({"data_size": 0}, "data holds no example"),
        ({"sets": [data]}, "sets must be a mapping of names to datasets"),
        ({"sets": {1: data}}, "sets must be a mapping of names to datasets"),
        ({"sets": {"test": 3}}, r"sets\['test'\]: data must be a map-style dataset"),
        ({"sets": {"test": lambda each: each}}, r"sets\['test'\]=.* has no length; give a dataset"),
        ({"learning_rate": "a"}, "learning_rate must be a positive number, got 'a'"),
        ({"learning_rate": 0.0}, r"learning_rate must be a positive number, got 0\.0"),
        ({"learning_rate": True}, "learning_rate must be a positive number, got True"),
        ({"windows": [(9, 12)]}, "holds no stored weights; they are stored from step 0 to 3"),
        ({"windows": [(3, 1)]}, "holds no stored weights"),
        ({"loss": None}, "needs loss="),
        ({"sets": {"data": data}}, "sets= names a set 'data'"),
        (
            {"learning_rate": None},
            "no learning rate is recorded before step 3, .* give learning_rate=",
        ),
        ({"learning_rate": float("nan")}, "learning_rate must be a positive number, got nan"),
        ({"data": None}, "needs data="),
        (
            {"error": lambda model, batch: model(batch)},
            "first examples of data",
        ),
        (
            {"error": lambda model, batch: torch.ones(3)},
            r"error\(model, batch\) must return the mean .* or one value for each of its 2",
        ),
        (
            {"loss": lambda model, batch: torch.ones(())},
            "loss or error fails on the first examples of data: RuntimeError: .* does not require",
        ),
        (
            {"data_batch_size": 1},
            "on a piece of 1 of 48 examples: ValueError: .*: give data_batch_size=2 or more, or "
            "batch_norm='keep'",
        ),
    ):
        with pytest.raises(UsageError, match=message) as refused:
            measure(**options)
        assert "\n" not in str(refused.value)
    with pytest.raises(UsageError, match=r"'0.weight' of shape \(5, 6\), and the model has no su"):
        measure(nn.ModuleDict({"x": nn.Linear(6, 5)}))
    with pytest.raises(UsageError, match=r"and the model has \(4, 6\)"):
        measure(nn.Sequential(nn.Linear(6, 4)))
    more = network()
    more.append(nn.Linear(3, 3))
    with pytest.raises(UsageError, match=r"no weights of 4\.weight, 4\.bias"):
        measure(more)
    with pytest.raises(NotRecordedError, match="stored at 1 steps from 3 to 3"):
        measure(windows=[(3, 3)])
    with pytest.raises(NotRecordedError, match="no group 'elsewhere' of weights"):
        measure(group="elsewhere")
    # Nothing was begun that could not be finished.
    assert not (tmp_path / "no.zarr").exists()
    before = tracelab.open(path).rows
    for out, message in (
        (path, r"there is a trace at .*run\.zarr, and measure_averages replaces none; give out="),
        (None, "a trace is named by a path, a URL or a Zarr store, got NoneType"),
    ):
        with pytest.raises(UsageError, match=message):
            measure_averages(path, out, windows=[1.0])
    assert tracelab.open(path).rows == before
    with pytest.raises(UsageError, match="there is no trace at"):
        measure_averages(tmp_path / "none.zarr", tmp_path / "no.zarr")


def test_a_recorded_learning_rate_of_zero_moves_nothing_and_is_refused(tmp_path) -> None:
    path = stored(tmp_path / "run.zarr", np.random.default_rng(0).standard_normal((4, 7)), rate=0.0)
    with pytest.raises(UsageError, match="a learning rate of 0 is recorded before step 6"):
        measure_averages(
            path, tmp_path / "no.zarr", Point(7), loss=mean_squares, data=table(*linear()),
            windows=[1.0],
        )  # fmt: skip


def test_what_fails_at_the_averaged_weights_is_said_in_a_sentence(tmp_path) -> None:
    """Not at those of the model that is given."""

    def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
        if model.flat().any():
            raise KeyError("words")
        return mean_squares(model, batch)

    path = stored(tmp_path / "run.zarr", np.random.default_rng(0).standard_normal((4, 7)))
    words = "loss or error fails at weights of the window 0 to 6: KeyError: 'words'"
    with pytest.raises(UsageError, match=words):
        measure_averages(
            path, tmp_path / "no.zarr", Point(7), loss=loss, data=table(*linear()), windows=[1.0]
        )


def test_batch_normalisation_keeps_single_examples_where_it_is_not_recomputed(
    inputs, targets, cross_entropy, tmp_path
) -> None:
    _, path = recorded_network(tmp_path, network())
    found = measured(
        path, tmp_path / "out.zarr", network(), loss=cross_entropy, windows=[1.0], draws=1,
        data=torch.utils.data.TensorDataset(inputs, targets), learning_rate=0.1, line=(0.0,),
        data_batch_size=1, batch_norm="keep",
    )  # fmt: skip
    assert np.isfinite(found["set_loss"]).all()
