"""The configuration of zero-code recording: what it can say, and what it is told if it cannot."""

import inspect
import re
from typing import get_args

import pytest

pytest.importorskip("torch")

import math

import tracelab
from tracelab import registry
from tracelab.errors import UsageError
from tracelab.launch.references import Reference
from tracelab.launch.settings import Settings, read
from tracelab.sketch import Sketch
from tracelab_collectors import Gradients, NoiseProbe, Statistics, Weights

KNOWN = registry.options(registry.recorder("torch"))


@pytest.fixture
def settings(tmp_path):
    """Read a configuration."""

    def read_text(text: str) -> Settings:
        (tmp_path / "trace.yaml").write_text(text)
        return read(str(tmp_path / "trace.yaml"), KNOWN)

    return read_text


def test_the_least(settings) -> None:
    found = settings("path: runs/a.zarr")
    assert found == Settings("runs/a.zarr", {}, every_optimizer=False)
    assert not found.strict


def test_everything(settings) -> None:
    found = settings(
        """
        path: runs/a.zarr
        optimizers: all
        loss: math:cos
        data: __main__:data.train
        data_size: 5
        seed: 3
        metadata: {lr: 0.1, tags: [a, b], note: null}
        overwrite: true
        strict: true
        layers: .*weight
        exclude: head.*
        collectors:
        - Statistics
        - gradients: {every: 10, sketch: [{Project: 256}, {Sample: {k: 64, seed: 1}}]}
        - Gradients: {sketch: Full, name: whole, every: {log_spaced: {stop: 1001, count: 4}}}
        - NoiseProbe: {steps: [0, 20], batches: 4}
        - weights:
        """
    )
    assert found.every_optimizer
    assert found.strict
    late = Reference("data", "__main__", "data.train")
    options = found.resolve(late=False)
    assert options.pop("loss") is math.cos
    assert options == {
        "data": late,
        "data_size": 5,
        "seed": 3,
        "metadata": {"lr": 0.1, "tags": ["a", "b"], "note": None},
        "overwrite": True,
        "strict": True,
        "layers": ".*weight",
        "exclude": "head.*",
        "collectors": [
            Statistics(),
            Gradients(every=10, sketch=(tracelab.Project(256), tracelab.Sample(64, 1))),
            Gradients(every=tracelab.log_spaced(1001, 4), sketch=tracelab.Full(), name="whole"),
            NoiseProbe(steps=[0, 20], batches=4),
            Weights(),
        ],
    }
    with pytest.raises(UsageError, match=r"data: the script has no 'data.train'; name what"):
        found.resolve(late=True)


@pytest.mark.parametrize("sketch", get_args(Sketch))
def test_every_sketch_has_its_name(sketch, settings) -> None:
    needed = [
        name
        for name, each in inspect.signature(sketch).parameters.items()
        if each.default is each.empty
    ]
    options = ", ".join(f"{name}: 3" for name in needed)
    (found,) = settings(
        f"{{path: a, collectors: [Gradients: {{sketch: {{{sketch.__name__}: {{{options}}}}}}}]}}"
    ).options["collectors"]
    assert isinstance(found.sketch[0], sketch)


def test_a_presets_name_is_passed_on(settings) -> None:
    assert settings("{path: a, collectors: light}").options == {"collectors": "light"}


def test_a_path_can_name_the_environment(settings, monkeypatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert settings("path: runs/${SLURM_JOB_ID}/$SLURM_JOB_ID-$$.zarr").path == "runs/17/17-$.zarr"


@pytest.mark.parametrize("value", ["true", "false", "7"])
def test_resume(value, settings) -> None:
    assert settings(f"{{path: a, resume: {value}}}").options["resume"] == eval(value.title())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must hold keys and values such as 'path: runs/sgd.zarr', got None"),
        ("- a", r"must hold keys and values .*, got \['a'\]"),
        ("a: [", "is no YAML file: while parsing .* line 1, column 5"),
        ("a: !!python/object:os.system {}", "is no YAML file: could not determine a constructor"),
        ("seed: 1", "path is missing; say where the trace goes"),
        ("pth: a", "there is no key 'pth'; did you mean 'path'?"),
        ("{path: a, zzz: 1}", "there is no key 'zzz'; there are: path, optimizers, collectors"),
        ("{path: a, rank: 1}", "there is no key 'rank'"),
        ("path: 3", "path must be a path or URL in words, got 3"),
        ("path: ''", "path is empty"),
        ("path: $NOWHERE/a", "names the environment variable 'NOWHERE', which is not set"),
        ("path: a$", "has a '\\$' that starts no environment variable's name"),
        ("{path: a, optimizers: two}", "optimizers must be 'first' or 'all', got 'two'"),
        ("{path: a, seed: true}", "seed must be an integer, got True"),
        ("{path: a, seed: 1.5}", "seed must be an integer, got 1.5"),
        ("{path: a, data_size: many}", "data_size must be an integer, got 'many'"),
        ("{path: a, strict: 1}", "strict must be true or false, got 1"),
        ("{path: a, overwrite: 'yes'}", "overwrite must be true or false, got 'yes'"),
        ("{path: a, resume: last}", "resume must be true, false or a step, got 'last'"),
        ("{path: a, resume: 0, overwrite: true}", "overwrite and resume contradict each other"),
        ("{path: a, layers: 1}", "layers must be a regular expression, got 1"),
        ("{path: a, exclude: '('}", "exclude: '\\(' is no regular expression: missing \\)"),
        ("{path: a, metadata: 1}", "metadata must be a mapping, got 1"),
        ("{path: a, metadata: {day: 2026-01-01}}", "metadata cannot be stored as JSON: .*date"),
        ("{path: a, metadata: {x: .nan}}", "metadata cannot be stored as JSON"),
        ("{path: a, loss: cos}", "loss must have the form 'package.module:name', got 'cos'"),
        ("{path: a, data: 'a:b()'}", "data must have the form 'package.module:name', got"),
        ("{path: a, data: 1}", "data must have the form 'package.module:name', got 1"),
        ("{path: a, collectors: []}", "collectors must be the name of a preset or a list"),
        ("{path: a, collectors: {Gradients: {}}}", "collectors must be the name of a preset or"),
        ("{path: a, collectors: [1]}", "collectors: each item must be a name, .*, got 1"),
        ("{path: a, collectors: [{1: {}}]}", "collectors: each item must be a name, .* got {1"),
        (
            "{path: a, collectors: [{Weights: {}, Statistics: {}}]}",
            "collectors: each item must be a name, or one name with its options",
        ),
        (
            "{path: a, collectors: [Gradient]}",
            "collectors: no collector is called 'Gradient'; did you mean 'Gradients'?",
        ),
        ("{path: a, collectors: [zzz]}", "no collector is called 'zzz'; there are: .*Gradients, "),
        (
            "{path: a, collectors: [Gradients: 10]}",
            "the options of Gradients must be a mapping such as {every: 10}, got 10",
        ),
        (
            "{path: a, collectors: [Gradients: {evry: 10}]}",
            "collectors: Gradients has no option 'evry'; did you mean 'every'?",
        ),
        (
            "{path: a, collectors: [Gradients: {every: 0}]}",
            "collectors: Gradients: every must be an integer of at least 1, got 0",
        ),
        (
            "{path: a, collectors: [Gradients: {steps: 3}]}",
            r"collectors: Gradients cannot be made of {'steps': 3}: .*not iterable; correct",
        ),
        (
            "{path: a, collectors: [Gradients: {sketch: {Projct: 3}}]}",
            "Gradients: sketch: 'Projct' is unknown; did you mean 'Project'?",
        ),
        (
            "{path: a, collectors: [Gradients: {sketch: Project}]}",
            "Gradients: sketch: Project needs k; give it as {k: ...}",
        ),
        (
            "{path: a, collectors: [Gradients: {sketch: {Full: 3}}]}",
            "Gradients: sketch: Full takes no option, got 3; leave it out",
        ),
        (
            "{path: a, collectors: [Gradients: {sketch: 3}]}",
            r"Gradients: sketch must be Project\(k\), .*, got 3",
        ),
        (
            "{path: a, collectors: [Gradients: {sketch: {Project: {k: 1, sed: 1}}}]}",
            "Gradients: sketch: Project has no option 'sed'; did you mean 'seed'?",
        ),
        (
            "{path: a, collectors: [Gradients: {sketch: {Project: none}}]}",
            "sketch: Project: Project needs k to be an integer of at least 1, got 'none'",
        ),
        (
            "{path: a, collectors: [Gradients: {every: {log_spaced: {stop: 9}}}]}",
            "Gradients: every: log_spaced needs count",
        ),
    ],
)
def test_each_mistake_is_told_in_one_sentence(text, words, settings) -> None:
    with pytest.raises(UsageError, match=words) as raised:
        settings(text)
    assert re.match(r"\S+trace.yaml: ", str(raised.value))
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there(tmp_path) -> None:
    with pytest.raises(
        UsageError, match=r"nowhere\.yaml: cannot be read: No such file or directory"
    ):
        read(str(tmp_path / "nowhere.yaml"), KNOWN)


def test_a_module_that_fails_is_told() -> None:
    with pytest.raises(UsageError, match="loss: module 'nowhere' cannot be imported: ModuleNotF"):
        Reference.of("loss", "nowhere:loss").load()
