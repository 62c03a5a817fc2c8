"""Every snippet of README and docs runs, in order, one namespace a file."""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from tracelab.cli import main

torch = pytest.importorskip("torch")

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def users_script():
    """Return what a reader's own training script already has."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(512, 20, generator=generator)
    labels = torch.randint(0, 4, (512,), generator=generator)
    dataset = torch.utils.data.TensorDataset(images, labels)
    model = torch.nn.Sequential(torch.nn.Linear(20, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, shuffle=True)

    def loss(model, batch):
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

    def train(model, optimizer):
        for batch in loader:
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()

    return {
        "torch": torch,
        "model": model,
        "optimizer": optimizer,
        "loader": loader,
        "dataset": dataset,
        "loss": loss,
        "train": train,
    }


# What frameworks say of PyTorch's releases and of loaders this small is no error of ours.
@pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated")
@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.parametrize(
    "page",
    # The page that everybody tries first, and the others with the slow tests.
    [
        page if page.name == "README.md" else pytest.param(page, marks=pytest.mark.slow)
        for page in PAGES
    ],
    ids=lambda page: page.name,
)
def test_snippets_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    namespace = users_script()
    for language, text in BLOCK.findall(page.read_text()):
        if language == "python":
            exec(compile(text, str(page), "exec"), namespace)
            continue
        for line in text.splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] == "tracelab":
                done = CliRunner().invoke(main, words[1:])
                assert done.exit_code == 0, f"{line}\n{done.output}\n{done.exception!r}"
