"""The command line of zero-code recording."""

import pytest

from tracelab.errors import UsageError
from tracelab.launch import main
from tracelab.launch.command import parse
from tracelab.launch.script import Script


@pytest.mark.parametrize(
    ("line", "script"),
    [
        ("--config c.yaml train.py", Script("train.py")),
        (
            "--config=c.yaml train.py --lr=1 -m -- x",
            Script("train.py", ("--lr=1", "-m", "--", "x")),
        ),
        ("--config c.yaml -- train.py --config d", Script("train.py", ("--config", "d"))),
        ("--config c.yaml -m package.train a", Script("package.train", ("a",), is_module=True)),
        ("--config c.yaml -- -m train", Script("train", is_module=True)),
    ],
)
def test_what_follows_the_script_is_the_scripts(line, script) -> None:
    command = parse(line.split())
    assert (command.config, command.script) == ("c.yaml", script)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "--config is missing; give a YAML file"),
        ("train.py", "--config is missing"),
        ("--config", "--config needs the name of a file"),
        ("--config= train.py", "--config needs the name of a file"),
        ("--conf c.yaml", "there is no option '--conf'; give --config FILE"),
        ("--config c.yaml", "nothing to run; name a script"),
        ("--config c.yaml -m", "nothing to run; name a module behind -m"),
    ],
)
def test_what_a_command_line_lacks_is_said(line, words) -> None:
    with pytest.raises(UsageError, match=words):
        parse(line.split())


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (Script("nowhere.py"), "there is no file 'nowhere.py' to run"),
        (Script("tests"), "there is no file 'tests' to run"),
        (Script("nowhere", is_module=True), "there is no module 'nowhere' to run"),
        (Script("tracelab.nowhere", is_module=True), "there is no module 'tracelab.nowhere'"),
        (Script("nowhere.at.all", is_module=True), "there is no module 'nowhere.at.all'"),
        (Script("tracelab.stats.laws", is_module=True), "there is no module 'tracelab.stats.laws'"),
        (Script("..", is_module=True), r"there is no module '\.\.' to run"),
    ],
)
def test_what_cannot_be_run_is_said(script, words) -> None:
    with pytest.raises(UsageError, match=words):
        script.check()


def test_a_package_that_fails_is_left_to_the_run(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in (("lacking", "import nowhere"), ("failing", "1 / 0")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(text)
        Script(f"{name}.train", is_module=True).check()


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help(option, capsys) -> None:
    main([option])
    assert capsys.readouterr().out.startswith("Usage: python -m tracelab.attach --config FILE")


def test_a_mistake_ends_with_code_2(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("Error: --config is missing")


def test_a_module_without_code_is_told() -> None:
    with pytest.raises(ImportError, match="there is no Python code in module 'nowhere'"):
        Script("nowhere", is_module=True).run()
