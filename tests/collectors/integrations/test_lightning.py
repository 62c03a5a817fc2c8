"""Lightning: what is recorded is what its optimizer does, and it trains as without a callback."""

import copy
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import tracelab
from tracelab.errors import UsageError
from tracelab_collectors import Gradients, Weights

with warnings.catch_warnings():
    # Its own imports of distributed data parallelism warn under recent releases of PyTorch.
    warnings.simplefilter("ignore")
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.plugins import MixedPrecision

from tracelab_collectors.integrations.lightning import TracelabCallback

pytestmark = [
    # An advice on the number of workers of the loader: these data are in memory.
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    # Where no trainer is attached to a module.
    pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated"),
]

RATE = 1.0


class Regression(LightningModule):
    """Minimizes a mean of squares by plain SGD, and keeps the weights after every batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
        self.weights: list[torch.Tensor] = []
        self.losses: list[float] = []
        self.fails_at: int | None = None

    def training_step(self, batch, batch_idx):
        if batch_idx == self.fails_at:
            raise ZeroDivisionError("the ninth batch")
        loss = self.net(batch[0]).square().mean()
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=RATE)

    def flat(self) -> torch.Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.parameters()]).clone()

    def on_train_start(self) -> None:
        self.weights.append(self.flat())

    def on_train_batch_end(self, outputs, batch, batch_idx) -> None:
        self.weights.append(self.flat())


@pytest.fixture
def loader():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(48, 6, generator=generator)
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs), batch_size=4)


def fit(module: LightningModule, loader, *callbacks: Callback, ckpt_path=None, **options):
    trainer = Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 1, **options},
    )
    trainer.fit(module, loader, ckpt_path=ckpt_path)
    return trainer


def gradients(**options) -> list:
    return [Gradients(sketch=tracelab.Full(), **options)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate_grad_batches": 2},
        {"gradient_clip_val": 0.05},
        {"precision": "bf16-mixed"},
        {"accumulate_grad_batches": 3, "gradient_clip_val": 0.05, "precision": "bf16-mixed"},
    ],
    ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()) or "plain",
)
def test_the_recorded_gradient_moves_the_weights(options, loader, path, group, attrs) -> None:
    bare, module = Regression(), Regression()
    fit(bare, loader, **options)
    fit(module, loader, TracelabCallback(path, collectors=gradients()), **options)
    assert torch.equal(bare.flat(), module.flat())
    parts = options.get("accumulate_grad_batches", 1)
    weights = torch.stack(module.weights[::parts])
    steps = 12 // parts
    assert attrs()["state"] == "complete"
    assert group("steps")["step"].values.tolist() == list(range(steps))
    assert group("steps")["micro_batches"].values.tolist() == [parts] * steps
    moved = (weights[:-1] - weights[1:]).numpy() / RATE
    recorded = group("gradients")["full"].values
    error = np.linalg.norm(recorded - moved, axis=1)
    assert (error <= 1e-6 * np.linalg.norm(weights[:-1], axis=1)).all()
    losses = np.reshape(module.losses, (steps, parts)).mean(axis=1)
    # Lightning divides each loss by the number of parts, in bfloat16 where that is its type.
    rounding = 2**-8 if "precision" in options else 1e-6
    np.testing.assert_allclose(group("steps")["loss"], losses, rtol=rounding)


def test_the_gradient_is_unscaled(loader, path, group) -> None:
    def scaled() -> dict:
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        # Lightning itself makes none for a CPU.
        return {"plugins": MixedPrecision("16-mixed", "cpu", scaler), "accumulate_grad_batches": 2}

    bare, module = Regression(), Regression()
    fit(bare, loader, **scaled())
    fit(module, loader, TracelabCallback(path, collectors=gradients()), **scaled())
    assert torch.equal(bare.flat(), module.flat())
    weights = torch.stack(module.weights[::2])
    moved = (weights[:-1] - weights[1:]).numpy() / RATE
    error = np.linalg.norm(group("gradients")["full"].values - moved, axis=1)
    assert (error <= 1e-6 * np.linalg.norm(weights[:-1], axis=1)).all()
    assert group("steps")["micro_batches"].values.tolist() == [2] * 6


def test_an_exception_makes_the_trace_incomplete(loader, path, group, attrs) -> None:
    module = Regression()
    module.fails_at = 8
    callback = TracelabCallback(path, collectors=gradients())
    with pytest.raises(ZeroDivisionError):
        fit(module, loader, callback)
    assert attrs()["state"] == "incomplete"
    assert attrs()["incomplete_reasons"] == ["ZeroDivisionError: the ninth batch"]
    # Lightning computes the loss inside of the optimizer's step.
    assert group("steps")["applied"].values.tolist() == [True] * 8 + [False]
    finite = np.isfinite(group("gradients")["full"].values).all(axis=1)
    assert finite.tolist() == [True] * 8 + [False]


def test_training_goes_on_at_the_trainers_step(loader, path, tmp_path, group, attrs) -> None:
    module = Regression()
    callback = TracelabCallback(path, resume=True)
    trainer = fit(module, loader, callback, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    fit(module, loader, callback, max_epochs=2, ckpt_path=tmp_path / "first.ckpt")
    # The same checkpoint once more: the second epoch is recorded anew, the first is kept.
    fit(module, loader, callback, max_epochs=3, ckpt_path=tmp_path / "first.ckpt")
    assert group("steps")["step"].values.tolist() == list(range(36))
    assert attrs()["state"] == "complete"


def test_what_cannot_be_recorded_is_said_before_training(loader, path) -> None:
    fit(Regression(), loader, TracelabCallback(path))
    module = Regression()
    with pytest.raises(UsageError, match="there is a trace at"):
        fit(module, loader, TracelabCallback(path))
    assert not module.losses


class Copying(Callback):
    """Copies and pickles callbacks in the middle of training."""

    def __init__(self) -> None:
        self.copies: list[TracelabCallback] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        for callback in trainer.callbacks:
            if isinstance(callback, TracelabCallback):
                self.copies = [copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))]


def test_copies_made_while_recording_hold_no_session(loader, path, attrs) -> None:
    copying = Copying()
    fit(Regression(), loader, TracelabCallback(path, metadata={"a": 1}), copying)
    assert attrs()["state"] == "complete"
    assert [each._held.step for each in copying.copies] == [0, 0]


class Manual(Regression):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return loss


def test_manual_optimization(loader, path, group) -> None:
    module = Manual()
    fit(
        module,
        loader,
        TracelabCallback(path, collectors=[Weights(every=1, sketch=tracelab.Full())]),
    )
    np.testing.assert_array_equal(group("weights")["full"], torch.stack(module.weights))
    np.testing.assert_allclose(group("steps")["loss"], module.losses, rtol=1e-6)


def test_a_teardown_without_an_end_leaves_an_incomplete_trace(loader, path, attrs) -> None:
    class Lost(TracelabCallback):
        def on_train_end(self, trainer, pl_module) -> None:
            pass

    fit(Regression(), loader, Lost(path))
    assert attrs()["incomplete_reasons"] == ["training was torn down before it had ended"]


@pytest.mark.slow
def test_pytorch_lightning_is_served_too() -> None:
    code = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "import pytorch_lightning\n"
        "from tracelab_collectors.integrations.lightning import TracelabCallback\n"
        "assert issubclass(TracelabCallback, pytorch_lightning.Callback)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_without_lightning_the_extra_is_named() -> None:
    code = (
        "import sys\n"
        "sys.modules['lightning'] = sys.modules['pytorch_lightning'] = None\n"
        "import tracelab_collectors.integrations.lightning\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'tracelab[lightning]'" in done.stderr


@pytest.mark.slow
def test_recording_imports_no_framework() -> None:
    code = (
        "import sys, tracelab_collectors.session, tracelab_collectors.integrations\n"
        "frameworks = {'lightning', 'pytorch_lightning', 'transformers', 'accelerate'}\n"
        "assert not frameworks & set(sys.modules), frameworks & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
