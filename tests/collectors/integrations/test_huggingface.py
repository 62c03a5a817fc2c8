"""The Trainer of Transformers and loops with Accelerate: what is recorded moves the weights."""

import copy
import os
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

# Nothing here may be downloaded.
os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

import tracelab
from tracelab.errors import UsageError
from tracelab_collectors import Gradients, NoiseProbe, Weights
from tracelab_collectors.integrations import huggingface
from tracelab_collectors.integrations.huggingface import TracelabCallback

RATE = 1.0
LENGTH = 8

# torch.utils.data: pinned memory is asked for, and there is no accelerator to pin it for.
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")


def gpt() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=17,
        n_positions=LENGTH,
        n_embd=8,
        n_layer=1,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


class Texts(torch.utils.data.Dataset):
    def __init__(self, fails_at: int | None = None) -> None:
        generator = torch.Generator().manual_seed(1)
        self.tokens = torch.randint(0, 17, (48, LENGTH), generator=generator)
        self.reads = 0
        self.fails_at = fails_at

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self.reads += 1
        if self.reads == self.fails_at:
            raise ZeroDivisionError("a bad text")
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).clone()


class Watching(TrainerCallback):
    """Keeps the weights of every step."""

    def __init__(self) -> None:
        self.weights: list[torch.Tensor] = []

    def on_train_begin(self, args, state, control, model=None, **kwargs) -> None:
        self.weights.append(flat(model))

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        self.weights.append(flat(model))


def trainer(model, folder, *callbacks, data=None, **options) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        optim="sgd",
        learning_rate=RATE,
        lr_scheduler_type="constant",
        per_device_train_batch_size=4,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        **{"max_steps": 6, "save_strategy": "no", **options},
    )
    return Trainer(model, arguments, train_dataset=data or Texts(), callbacks=[*callbacks] or None)


def full() -> list:
    return [Gradients(sketch=tracelab.Full())]


def assert_moved(recorded, weights) -> None:
    """Compare recorded gradients with ``(w_t - w_{t+1}) / lr``, to the rounding of the weights."""
    weights = torch.stack(weights).numpy()
    moved = (weights[:-1] - weights[1:]) / RATE
    error = np.linalg.norm(recorded - moved, axis=1)
    assert len(recorded) == len(moved)
    assert (error <= 1e-6 * np.linalg.norm(weights[:-1], axis=1)).all()


@pytest.mark.parametrize(
    "options",
    [
        {"max_grad_norm": 0.0},
        {"gradient_accumulation_steps": 2, "max_grad_norm": 0.0},
        {"max_grad_norm": 0.1},
        {"bf16": True},
        {"gradient_accumulation_steps": 3, "max_grad_norm": 0.1, "bf16": True},
    ],
    ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()),
)
def test_the_recorded_gradient_moves_the_weights(options, path, tmp_path, group, attrs) -> None:
    bare, model = gpt(), gpt()
    trainer(bare, tmp_path, **options).train()
    watching = Watching()
    watched = trainer(
        model, tmp_path, TracelabCallback(path, collectors=full()), watching, **options
    )
    watched.train()
    assert torch.equal(flat(bare), flat(model))
    assert attrs()["state"] == "complete"
    parts = options.get("gradient_accumulation_steps", 1)
    steps = group("steps")
    assert steps["step"].values.tolist() == list(range(6))
    assert steps["micro_batches"].values.tolist() == [parts] * 6
    assert_moved(group("gradients")["full"].values, watching.weights)
    logged = [each["loss"] for each in watched.state.log_history if "loss" in each]
    np.testing.assert_allclose(steps["loss"], logged, rtol=1e-12)


def test_within_the_callback_an_exception_is_the_reason(path, tmp_path, group, attrs) -> None:
    callback = TracelabCallback(path, collectors=full())
    failing = trainer(gpt(), tmp_path, callback, data=Texts(fails_at=21))
    with pytest.raises(ZeroDivisionError), callback:
        failing.train()
    assert attrs()["state"] == "incomplete"
    assert attrs()["incomplete_reasons"] == ["ZeroDivisionError: a bad text"]
    assert 3 <= group("steps").sizes["step"] <= 5


def test_training_again_closes_what_an_exception_left_open(path, tmp_path, group, attrs) -> None:
    callback = TracelabCallback(path, resume=True)
    failing = trainer(gpt(), tmp_path, callback, data=Texts(fails_at=21))
    with pytest.raises(ZeroDivisionError):
        failing.train()
    before = attrs()
    assert before["state"] == "recording"
    failing.train()
    assert attrs()["state"] == "complete"
    steps = group("steps")["step"].values.tolist()
    assert steps == list(range(len(steps)))
    assert len(steps) > 6


@pytest.mark.slow
def test_a_script_that_an_exception_ends_says_so_in_its_trace(path, tmp_path, attrs) -> None:
    script = f"""
        import sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from test_huggingface import *
        callback = TracelabCallback({str(path)!r})
        trainer(gpt(), {str(tmp_path)!r}, callback, data=Texts(fails_at=21)).train()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "ZeroDivisionError: a bad text" in done.stderr
    assert attrs()["incomplete_reasons"] == ["ZeroDivisionError: a bad text"]


def test_training_goes_on_at_the_trainers_step(path, tmp_path, group) -> None:
    saving = {"save_strategy": "steps", "save_steps": 4, "max_steps": 6}
    model = gpt()
    trainer(model, tmp_path, TracelabCallback(path, resume=True), **saving).train()
    end = flat(model)
    again = trainer(gpt(), tmp_path, TracelabCallback(path, resume=True), **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert group("steps")["step"].values.tolist() == list(range(6))
    assert torch.equal(flat(again.model), end)


def test_a_probe_of_a_trainers_model(path, tmp_path, group) -> None:
    def loss(model, batch):
        return model(**batch).loss

    probe = NoiseProbe(steps=[0, 3], batches=3, batch_size=2, sketch=tracelab.Full())
    bare, model = gpt(), gpt()
    trainer(bare, tmp_path).train()
    callback = TracelabCallback(path, collectors=[probe], loss=loss, data=Texts())
    trainer(model, tmp_path, callback).train()
    assert torch.equal(flat(bare), flat(model))
    assert group("noise")["full"].shape[:2] == (2, 3)


class Copying(TrainerCallback):
    def __init__(self, callback: TracelabCallback) -> None:
        self.callback = callback
        self.copies: list[TracelabCallback] = []

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.copies = [copy.deepcopy(self.callback), pickle.loads(pickle.dumps(self.callback))]


def test_copies_made_while_recording_hold_no_session(path, tmp_path, attrs) -> None:
    callback = TracelabCallback(path)
    copying = Copying(callback)
    trainer(gpt(), tmp_path, callback, copying).train()
    assert attrs()["state"] == "complete"
    assert [each._held.step for each in copying.copies] == [0, 0]


def test_what_cannot_be_recorded_is_said_before_training(path, tmp_path) -> None:
    trainer(gpt(), tmp_path, TracelabCallback(path)).train()
    model = gpt()
    with pytest.raises(UsageError, match="there is a trace at"):
        trainer(model, tmp_path, TracelabCallback(path)).train()
    assert torch.equal(flat(model), flat(gpt()))


@pytest.fixture
def fresh_accelerate():
    """Accelerate keeps one state a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def accelerated(path, precision: str, parts: int, **options):
    """Train by a plain loop; return the weights of every step."""
    accelerator = Accelerator(
        cpu=True, mixed_precision=precision, gradient_accumulation_steps=parts
    )
    model = gpt()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    loader = torch.utils.data.DataLoader(Texts(), batch_size=4)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    session = None
    if path is not None:
        session = huggingface.attach(accelerator, model, optimizer, path, **options)
    weights = [flat(model)]
    for batch in loader:
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            weights.append(flat(model))
    if session is not None:
        session.detach()
    return weights


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("parts", [1, 3])
def test_a_loop_with_accelerate(precision, parts, path, group, attrs) -> None:
    bare = accelerated(None, precision, parts)
    collectors = [*full(), Weights(every=1, sketch=tracelab.Full())]
    weights = accelerated(path, precision, parts, collectors=collectors)
    assert torch.equal(bare[-1], weights[-1])
    assert attrs()["state"] == "complete"
    assert group("steps")["micro_batches"].values.tolist() == [parts] * (12 // parts)
    assert_moved(group("gradients")["full"].values, weights)
    np.testing.assert_array_equal(group("weights")["full"], torch.stack(weights))


@pytest.mark.slow
def test_without_transformers_the_extra_is_named() -> None:
    code = (
        "import sys\n"
        "sys.modules['transformers'] = None\n"
        "import tracelab_collectors.integrations.huggingface\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'tracelab[huggingface]'" in done.stderr
