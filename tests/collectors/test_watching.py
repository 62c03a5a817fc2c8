"""Zero-code recording: scripts that are not edited run as without it, and are recorded."""

import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import tracelab

# A script that prints what a change to its training would change.
TRAINING = """
    import sys
    import torch
    from torch import nn

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    inputs = torch.randn(20, 6)
    weights = []

    def flat():
        return torch.cat([p.detach().reshape(-1) for p in net.parameters()])

    for step in range(8):
        for part in inputs.split(10):
            (net(part).square().mean() / 2).backward()
        weights.append(flat())
        optimizer.step()
        optimizer.zero_grad()
    weights.append(flat())
    print(flat().double().sum().item().hex(), torch.rand(()).item())
    torch.save(torch.stack(weights), "weights.pt")
"""
CONFIG = """
    path: run.zarr
    collectors:
    - Gradients: {sketch: Full}
    - Weights: {every: 1, sketch: Full}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a script and a configuration."""
    (tmp_path / "trace.yaml").write_text(textwrap.dedent(CONFIG))
    (tmp_path / "train.py").write_text(textwrap.dedent(TRAINING))
    return tmp_path


def command(*words: str, config: str = "trace.yaml") -> list[str]:
    return [sys.executable, "-m", "tracelab.attach", "--config", config, *words]


def run(folder: Path, *words: str, plain: bool = False) -> subprocess.CompletedProcess:
    """Run a script in its folder, by Python alone or recorded."""
    return subprocess.run(
        [sys.executable, *words] if plain else command(*words),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def add(folder: Path, text: str, before: str = "") -> None:
    script = folder / "train.py"
    script.write_text(textwrap.dedent(before) + script.read_text() + textwrap.dedent(text))


def configure(folder: Path, text: str) -> None:
    (folder / "trace.yaml").write_text(textwrap.dedent(text))


def steps(folder: Path, name: str = "run.zarr") -> int:
    with tracelab.open(folder / name) as trace:
        return trace.groups["steps"].sizes["step"]


def attrs(folder: Path, name: str = "run.zarr") -> dict:
    with tracelab.open(folder / name) as trace:
        return dict(trace.attrs)


def test_a_script_is_recorded_from_its_first_step_on(folder) -> None:
    without = run(folder, "train.py", plain=True)
    done = run(folder, "train.py")
    assert (done.returncode, done.stdout, done.stderr) == (0, without.stdout, "")
    weights = torch.load(folder / "weights.pt").numpy()
    with tracelab.open(folder / "run.zarr") as trace:
        assert trace.attrs["state"] == "complete"
        assert trace.groups["steps"]["step"].values.tolist() == list(range(8))
        np.testing.assert_array_equal(trace.groups["weights"]["full"].values, weights)
        recorded = trace.groups["gradients"]["full"].values
    error = np.linalg.norm(recorded - (weights[:-1] - weights[1:]), axis=1)
    assert (error <= 1e-6 * np.linalg.norm(weights[:-1], axis=1)).all()


WHOLE_STORY = """
    import atexit, pickle, sys

    class Value:
        pass

    atexit.register(lambda: print(pickle.loads(pickle.dumps(Value())).__class__.__module__))
    print(__name__, __file__, __spec__ and __spec__.name, __package__, type(__loader__), __cached__)
    print(sys.argv, sys.path[0], sys.modules["__main__"].__dict__ is globals())
    print([name for name in globals() if isinstance(globals()[name], (int, float, bool, str))])
    exec(open("more.py").read())
    print(from_more)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["sub/train.py", "--x=1", "-m", "--config"], ["-m", "sub.train"]]
)
def test_a_script_finds_itself_as_python_would_start_it(words, folder) -> None:
    (folder / "sub").mkdir()
    (folder / "train.py").rename(folder / "sub" / "train.py")
    (folder / "more.py").write_text("from_more = sys.argv[1:]\n")
    script = folder / "sub" / "train.py"
    script.write_text(script.read_text() + textwrap.dedent(WHOLE_STORY))
    without = run(folder, *words, plain=True)
    done = run(folder, *words)
    assert without.returncode == 0
    assert (done.returncode, done.stdout) == (0, without.stdout)
    assert steps(folder) == 8


def slow(*values: object) -> object:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("ending", "code", "state", "reasons"),
    [
        slow("sys.exit()", 0, "complete", []),
        slow("sys.exit(0)", 0, "complete", []),
        slow("sys.exit(3)", 3, "incomplete", ["SystemExit: 3"]),
        slow("sys.exit('no')", 1, "incomplete", ["SystemExit: no"]),
        slow("def f():\n    1 / 0\nf()", 1, "incomplete", ["ZeroDivisionError: division by zero"]),
        slow("raise KeyboardInterrupt", -signal.SIGINT, "incomplete", ["KeyboardInterrupt"]),
        slow(
            "sys.excepthook = lambda kind, error, trace: print(error, trace.tb_lineno)\n1 / 0",
            1,
            "incomplete",
            ["ZeroDivisionError: division by zero"],
        ),
        slow(
            "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise ValueError from error",
            1,
            "incomplete",
            ["ValueError"],
        ),
    ],
)
def test_a_script_ends_as_without_us(ending, code, state, reasons, folder) -> None:
    add(folder, f"\n{ending}\n")
    without = run(folder, "train.py", plain=True)
    done = run(folder, "train.py")
    assert (done.returncode, done.stdout, done.stderr) == (code, without.stdout, without.stderr)
    assert without.returncode == code
    assert (attrs(folder)["state"], attrs(folder)["incomplete_reasons"]) == (state, reasons)
    assert steps(folder) == 8


@pytest.mark.slow
def test_a_script_that_is_no_python_is_told_as_by_python(folder) -> None:
    (folder / "train.py").write_text("def f(:\n")
    without, done = run(folder, "train.py", plain=True), run(folder, "train.py")
    assert (done.returncode, done.stderr) == (without.returncode, without.stderr)
    assert not (folder / "run.zarr").exists()


@pytest.mark.slow
def test_a_signal_that_ends_a_script_closes_its_trace(folder) -> None:
    add(folder, "\nimport time\nprint('waiting', flush=True)\nwhile True:\n    time.sleep(0.1)\n")
    process = subprocess.Popen(
        command("train.py"), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.1)
    process.terminate()
    _, errors = process.communicate()
    assert (process.returncode, errors) == (128 + signal.SIGTERM, "")
    assert tracelab.verify(folder / "run.zarr").sound
    assert attrs(folder)["incomplete_reasons"] == ["the process was ended by SIGTERM"]
    assert steps(folder) == 8


@pytest.mark.slow
def test_a_compiled_model_is_recorded_under_its_own_names(folder) -> None:
    replaced(folder, "net(part)", "compiled(part)")
    replaced(folder, "inputs = ", "compiled = torch.compile(net, backend='eager')\ninputs = ")
    without, done = run(folder, "train.py", plain=True), run(folder, "train.py")
    assert (done.stdout, done.stderr) == (without.stdout, "")
    with tracelab.open(folder / "run.zarr") as trace:
        assert list(trace.layers["layer"].values) == ["0.weight", "0.bias", "2.weight", "2.bias"]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["loss: probe:loss", "loss: __main__:loss"])
def test_a_probe_of_a_script(where, folder) -> None:
    (folder / "probe.py").write_text(
        "import torch\n"
        "data = torch.utils.data.TensorDataset(torch.randn(20, 6))\n"
        "def loss(model, batch):\n"
        "    return model(batch[0]).square().mean()\n"
    )
    add(folder, "", before="def loss(model, batch):\n    return model(batch[0]).square().mean()\n")
    probe = "NoiseProbe: {steps: [0, 5], batches: 3, batch_size: 4, sketch: [{Sample: 3}]}"
    configure(
        folder,
        f"""
        path: run.zarr
        {where}
        data: probe:data
        collectors:
        - {probe}
        """,
    )
    without, done = run(folder, "train.py", plain=True), run(folder, "train.py")
    assert (done.stdout, done.stderr) == (without.stdout, "")
    with tracelab.open(folder / "run.zarr") as trace:
        assert trace.groups["noise"]["sampled"].shape == (2, 3, 4 * 3 - 2)


TWO = """
    import torch
    from torch import nn

    makers = [nn.Linear(3, 2), nn.Linear(3, 2)]
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in makers]
    for step in range(4):
        for net, optimizer in zip(makers, optimizers):
            net(torch.ones(3)).sum().backward()
            optimizer.step()
"""


@pytest.mark.slow
@pytest.mark.parametrize("which", ["first", "all"])
def test_further_optimizers_get_traces_of_their_own(which, folder) -> None:
    (folder / "train.py").write_text(textwrap.dedent(TWO))
    configure(folder, f"{{path: run.zarr, optimizers: {which}}}")
    done = run(folder, "train.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert steps(folder) == 4
    assert (folder / "run-2.zarr").exists() == (which == "all")
    if which == "all":
        assert steps(folder, "run-2.zarr") == 4


def replaced(folder: Path, old: str, new: str) -> None:
    script = folder / "train.py"
    assert old in script.read_text()
    script.write_text(script.read_text().replace(old, new))


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
def test_what_cannot_be_recorded_is_warned_of_once(strict, folder) -> None:
    loose = "optimizer.add_param_group({'params': [torch.ones(3, requires_grad=True)]})"
    replaced(folder, "weights = []", f"weights = []\n{loose}\n")
    configure(folder, f"{{path: run.zarr, strict: {str(strict).lower()}}}")
    done = run(folder, "train.py")
    words = "the optimizer SGD trains 1 tensors that no module holds; call tracelab.attach in the"
    assert done.returncode == strict
    assert done.stderr.count(words) == 1
    assert ("training goes on, unrecorded" in done.stderr) is not strict


@pytest.mark.slow
def test_several_models_of_one_optimizer_are_recorded_together(folder) -> None:
    head = "head, loose = nn.Linear(1, 2), nn.Parameter(torch.ones(3))\n"
    replaced(folder, "optimizer = ", f"{head}optimizer = ")
    replaced(folder, "(net.parameters()", "([*net.parameters(), *head.parameters(), loose]")
    done = run(folder, "train.py")
    assert (done.returncode, done.stderr) == (0, "")
    with tracelab.open(folder / "run.zarr") as trace:
        names = trace.layers["layer"].values.tolist()
    assert names == [
        *(f"0.{n}" for n in ("0.weight", "0.bias", "2.weight", "2.bias")),
        "1.weight",
        "1.bias",
        "2.0",
    ]


@pytest.mark.slow
def test_threads_that_a_script_sets_too_late_are_told(folder) -> None:
    add(folder, "", before="import os\nos.environ['OMP_NUM_THREADS'] = '7'\n")
    done = run(folder, "train.py")
    assert "the script set OMP_NUM_THREADS=7 after PyTorch had been imported" in done.stderr


@pytest.mark.slow
def test_a_script_that_does_not_train_is_told(folder) -> None:
    (folder / "train.py").write_text("print('nothing')\n")
    done = run(folder, "train.py")
    assert (done.returncode, done.stdout) == (0, "nothing\n")
    assert "took no optimizer step in this process" in done.stderr


@pytest.mark.slow
def test_forked_processes_are_left_alone(folder) -> None:
    add(
        folder,
        """
        import os
        child = os.fork()
        optimizer.step()
        if child == 0:
            sys.exit(5)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
        """,
    )
    done = run(folder, "train.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert (attrs(folder)["state"], steps(folder)) == ("complete", 9)


SPAWNING = """
    import multiprocessing

    def double(x):
        return 2 * x

    if __name__ == "__main__":
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(pool.map(double, [1, 2]))
"""


@pytest.mark.slow
def test_spawned_processes_find_the_script(folder) -> None:
    (folder / "train.py").write_text(textwrap.dedent(SPAWNING))
    done = run(folder, "train.py")
    assert (done.returncode, done.stdout) == (0, "[2, 4]\n")


DDP = """
    import os
    import torch
    from torch import nn

    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    torch.manual_seed(0)
    net = nn.parallel.DistributedDataParallel(nn.Linear(3, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(4):
        optimizer.zero_grad()
        net(torch.full((3,), float(rank))).sum().backward()
        optimizer.step()
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_every_rank_can_run_the_launcher(folder) -> None:
    (folder / "train.py").write_text(textwrap.dedent(DDP))
    configure(folder, "path: run.zarr")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, "-m", "tracelab.attach", "--config", "trace.yaml", "train.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Incomplete" not in done.stderr
    assert (attrs(folder)["state"], steps(folder)) == ("complete", 4)


@pytest.mark.slow
def test_there_is_something_at_the_path_already(folder) -> None:
    assert run(folder, "train.py").returncode == 0
    done = run(folder, "train.py")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Error: trace.yaml: there is something at" in done.stderr
    configure(folder, CONFIG + "\n    overwrite: true")
    assert run(folder, "train.py").returncode == 0
    configure(folder, CONFIG + "\n    resume: true")
    assert run(folder, "train.py").returncode == 0
    assert steps(folder) == 16


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{path: a, collectors: [NoiseProbe]}", "collector 'noise' .* needs loss"),
        slow("{path: a, collectors: [NoiseProbe], loss: 'a:b'}", "collector 'noise' .* needs data"),
        slow("{path: a, collectors: [examples]}", "collector '.*' .* needs loss"),
        slow("{path: a, collectors: lite}", "collectors='lite' is no preset"),
        slow("{path: a, data: 'nowhere:data'}", "data: module 'nowhere' cannot be imported"),
        slow("{path: a, loss: 'math:nothing'}", "loss: module 'math' has no 'nothing'"),
    ],
)
def test_what_is_known_before_the_script_is_said_before_it(config, words, folder) -> None:
    configure(folder, config)
    done = run(folder, "train.py")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert re.search(words, done.stderr), done.stderr
