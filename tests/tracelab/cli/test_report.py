import sys


def test_writes_a_page_of_several_traces(run, record, tmp_path):
    paths = [record("first"), record("second")]
    run("analyze", *paths, "-a", "noise_scale")
    page = tmp_path / "page.html"
    result = run("report", *paths, paths[0], "-o", page)
    assert (result.exit_code, result.stdout) == (0, f"{page}\n")
    text = page.read_text()
    assert "first" in text
    assert "second" in text


def test_a_page_without_results_is_wrong_usage(run, record, tmp_path):
    result = run("report", record(), "-o", tmp_path / "page.html")
    assert result.exit_code == 2
    assert "tracelab analyze" in result.stderr


def test_what_is_no_trace(run, tmp_path):
    (tmp_path / "notes.txt").write_text("no trace")
    assert run("report", tmp_path, "-o", tmp_path / "page.html").exit_code == 3
    assert run("report", tmp_path / "no.zarr", "-o", tmp_path / "page.html").exit_code == 2
    assert run("report").exit_code == 2


def test_figures_need_their_extra(run, record, tmp_path, monkeypatch):
    path = record()
    run("analyze", path, "-a", "noise_scale")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("report", path, "-o", tmp_path / "page.html")
    assert result.exit_code == 2
    assert "pip install 'tracelab[report]'" in result.stderr
