import json
import logging

import click
import numpy as np
import pytest

from tracelab.cli import console


def test_json_is_strict():
    data = {"nan": float("nan"), "array": np.array([1.0, np.inf]), 3: (np.int64(4), None, True)}
    text = console.to_json(data)
    assert json.loads(text, parse_constant=pytest.fail) == {
        "nan": None,
        "array": [1.0, None],
        "3": [4, None, True],
    }


def test_json_names_what_it_does_not_know():
    assert json.loads(console.to_json({"where": click.Path})) == {"where": str(click.Path)}


def test_table_aligns_numbers_to_the_right_and_words_to_the_left():
    columns = {"layer": ["fc", "network"], "alpha": [1.98765, float("nan")], "n": [3, 4000]}
    assert console.table(columns) == (
        "layer    alpha     n\nfc       1.988     3\nnetwork      -  4000"
    )


def test_table_of_nothing_is_its_heading():
    assert console.table({"a": [], "b": []}) == "a  b"


@pytest.mark.parametrize(
    ("item", "text"),
    [(None, "-"), (True, "yes"), (False, "no"), (("a", "b"), "a, b"), (1e-9, "1e-09"), (7, "7")],
)
def test_values_of_cells(item, text):
    assert console.value(item) == text


@pytest.mark.parametrize(
    ("item", "text"), [(None, "none"), (True, "true"), (["a", "b"], "a,b"), (0.05, "0.05")]
)
def test_settings_read_as_the_option_takes_them(item, text):
    assert console.setting(item) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1536, "1.5 KiB"), (3 * 2**30, "3.0 GiB"), (2**60, "1048576.0 TiB")],
)
def test_sizes(count, text):
    assert console.size(count) == text


def test_paragraph_is_one_line_where_no_terminal_is():
    text = "word " * 100
    assert console.paragraph("  head  ", text) == f"  head  {text}".rstrip()


def test_paragraph_wraps_under_itself_on_a_terminal(monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    lines = console.paragraph("head  ", "word " * 20).splitlines()
    assert lines[0].startswith("head  word")
    assert all(line.startswith("      word") for line in lines[1:])
    assert max(map(len, lines)) <= 40


def test_no_bar_without_a_terminal(capsys):
    assert console.Console().bar() is None


def test_bar_draws_and_erases_itself(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert console.Console(logging.ERROR).bar() is None
    monkeypatch.setattr(console, "REDRAW_SECONDS", 0.0)
    draw = console.Console().bar("run: ")
    draw("alpha", 1, 2)
    draw("alpha", 2, 2)
    assert capsys.readouterr().err == ("\r\033[Krun: alpha [############------------] 1/2\r\033[K")


def test_log_goes_to_stderr_at_the_level_asked_for(capsys):
    stop = console.Console(logging.INFO).start_logging()
    logging.getLogger("tracelab.x").info("heard")
    logging.getLogger("tracelab.x").debug("not heard")
    stop()
    logging.getLogger("tracelab.x").warning("after")
    assert capsys.readouterr().err == "INFO: heard\n"
