"""`tracelab/attach.py` is run, and never stands in the way of the function `tracelab.attach`."""

import pkgutil
import subprocess
import sys

import pytest

pytest.importorskip("torch")

import tracelab
from tracelab_collectors.attach import attach


def test_the_module_cannot_be_imported() -> None:
    with pytest.raises(ImportError, match=r"can only be run, as in 'python -m tracelab\.attach"):
        __import__("tracelab.attach")
    assert "tracelab.attach" not in sys.modules
    assert tracelab.attach is attach


@pytest.mark.slow
@pytest.mark.parametrize("first", ["", "try: import tracelab.attach\nexcept ImportError: pass\n"])
@pytest.mark.parametrize("way", ["from tracelab import attach", "attach = tracelab.attach"])
def test_the_function_is_found_in_a_fresh_process(first, way) -> None:
    code = (
        f"{first}import tracelab\n{way}\nfrom tracelab_collectors import attach as recorder\n"
        "assert attach is recorder.attach is tracelab.attach"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_walk_over_the_packages_imports_it_not() -> None:
    names = [each.name for each in pkgutil.walk_packages(tracelab.__path__, "tracelab.")]
    assert "tracelab.attach" in names
    assert tracelab.attach is attach


@pytest.mark.slow
def test_type_checkers_see_a_function(tmp_path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import tracelab\nfrom tracelab import attach\ndef f(model: object) -> None:\n"
        "    attach(model)\n    tracelab.attach(model)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
