import logging
from importlib.metadata import EntryPoint

import pytest

from tracelab import registry
from tracelab.contracts import Analysis
from tracelab.errors import MissingExtraError, UsageError


@pytest.fixture
def entries(monkeypatch):
    """Install entry points for one test: group to name to value."""

    def install(**groups):
        table = {
            f"tracelab.{group}": {
                name: EntryPoint(name, value, f"tracelab.{group}") for name, value in named.items()
            }
            for group, named in groups.items()
        }
        monkeypatch.setattr(registry, "_entries", lambda group: table.get(group, {}))

    return install


def test_our_own_plugins_are_found_as_a_third_partys_are():
    assert set(registry.analyses()) == {
        "averaging",
        "complexity",
        "byzantine",
        "curvature",
        "dimension_bound",
        "escape_times",
        "gaussianity",
        "information_bound",
        "marginal_likelihood",
        "noise_law",
        "noise_scale",
        "one_point_convexity",
        "pac_bayes",
        "sharpness",
        "tail_index",
        "training_noise",
        "update_noise",
        "weight_diffusion",
        "worker_drift",
    }
    assert all(isinstance(found, Analysis) for found in registry.analyses().values())
    assert callable(registry.recorder("torch"))
    assert callable(registry.demo("digits"))


def test_a_broken_plugin_does_not_take_the_others_along(entries, caplog):
    entries(
        analyses={
            "fine": "tracelab_analyses.noise_scale:ANALYSIS",
            "gone": "no_such_package.module:ANALYSIS",
            "wrong": "math:pi",
        }
    )
    with caplog.at_level(logging.WARNING):
        assert set(registry.analyses()) == {"fine"}
    assert "the plugin 'gone' (no_such_package.module:ANALYSIS) cannot be imported" in caplog.text
    assert (
        "the plugin 'wrong' (math:pi) is a float, not a tracelab.contracts.Analysis" in caplog.text
    )
    with pytest.raises(UsageError, match="install what it needs or uninstall it"):
        registry.analysis("gone")


def test_a_broken_collector_does_not_take_the_others_along(entries, caplog):
    entries(collectors={"fine": "tracelab.sketch:Full", "gone": "no_such_package:Collector"})
    with caplog.at_level(logging.WARNING):
        assert list(registry.collectors()) == ["fine"]
    assert "the plugin 'gone' (no_such_package:Collector) cannot be imported" in caplog.text


def test_recording_without_torch_names_the_extra(entries, tmp_path, monkeypatch):
    (tmp_path / "needs_torch.py").write_text("raise ModuleNotFoundError('no torch', name='torch')")
    monkeypatch.syspath_prepend(tmp_path)
    entries(recorders={"torch": "needs_torch:attach"})
    with pytest.raises(MissingExtraError, match=r"pip install 'tracelab\[collect\]'"):
        registry.recorder("torch")
    entries(collectors={"gradients": "needs_torch:Gradients"})
    with pytest.raises(MissingExtraError, match=r"pip install 'tracelab\[collect\]'"):
        registry.collectors()


def test_unknown_names_list_what_there_is(entries):
    entries(recorders={"torch": "math:pi"}, demos={})
    with pytest.raises(UsageError, match="no recorder for 'jax' is installed; there are: torch"):
        registry.recorder("jax")
    with pytest.raises(UsageError, match="no demonstration is called 'cats'; there are: none"):
        registry.demo("cats")
    with pytest.raises(UsageError, match="no launcher for 'jax' is installed; there are: none"):
        registry.launcher("jax")
