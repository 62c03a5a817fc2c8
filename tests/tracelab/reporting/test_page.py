import re
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib as mpl
import numpy as np
import pytest

import tracelab
from tracelab import registry
from tracelab.errors import MissingExtraError, UsageError
from tracelab.reporting import report
from tracelab.reporting.page import _labels

VOID = {"meta", "link", "br", "hr", "img", "input", "wbr"}


class Page(HTMLParser):
    """Tags, identifiers, links and text of a page; fails where a tag is not closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.links, self.sources, self.open = [], [], [], [], []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs, *, closed=False):
        attributes = dict(attrs)
        self.tags.append(tag)
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag == "a":
            self.links.append(attributes["href"])
        elif "xlink:href" in attributes:
            self.sources.append(attributes["xlink:href"])
        self.sources += [
            attributes[name] for name in ("src", "srcset", "data") if name in attributes
        ]
        assert not any(name.startswith("on") for name in attributes)
        if tag not in VOID and not closed:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs, closed=True)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def html(page_path):
    return page_path.read_text()


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_there_is_one_section_for_each_analysis_and_one_part_for_each_set_of_parameters(page):
    sections = [name for name in page.ids if name.startswith("section-")]
    assert sections == ["section-gaussianity", "section-noise_scale", "section-weight_diffusion"]
    parts = [name for name in page.ids if name.startswith("analysis-")]
    assert parts == [
        "analysis-gaussianity-1",
        "analysis-gaussianity-2",
        "analysis-noise_scale",
        "analysis-weight_diffusion",
    ]
    assert "mode = pooled" in page.text
    assert {"runs", "quantiles", "distance", "provenance"} <= set(page.ids)


def test_identifiers_are_unique_and_internal_links_lead_somewhere(page):
    assert len(page.ids) == len(set(page.ids))
    for link in [*page.links, *page.sources]:
        if link.startswith("#"):
            assert link[1:] in page.ids


def test_the_page_loads_nothing_and_runs_nothing(page, html):
    assert "script" not in page.tags
    assert not {"link", "img", "iframe", "object", "embed", "form"} & set(page.tags)
    assert all(source.startswith("#") for source in page.sources)
    cited = {r.url for analysis in registry.analyses().values() for r in analysis.references}
    assert {link for link in page.links if "://" in link} <= cited
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    assert "default-src 'none'" in html


def test_what_a_trace_says_is_text(page, html):
    assert "<script" not in html
    assert page.text.count('<script>alert("x")</script>') == 2
    assert "&lt;script&gt;" in html


def test_the_answer_is_on_top_and_has_three_lines(html):
    answer = re.search(r'<div class="scroll answer">.*?</div>', html, re.DOTALL).group()
    assert answer.count('<th scope="row">') == 3
    assert html.index(answer) < html.index('id="runs"')
    assert "How noisy is the gradient?" in answer
    assert "tr(Sigma) / |G|^2" in answer
    # Two analyses by step and one without, of two traces.
    assert answer.count("step 0<") == 4
    assert answer.count("step 100<") == 4


def test_findings_warnings_and_references_of_every_result_are_there(page, runs):
    text = page.text.replace("\u00a0", " ")
    for run in runs:
        trace = tracelab.open(run)
        for name in trace.results:
            for result in trace.results.all(name).values():
                assert result.attrs["finding"] in text
                for warning in result.attrs["warnings"]:
                    assert warning in text
                for reference in result.attrs["references"]:
                    assert reference in text
                assert result.attrs["input_digest"] in text


def test_a_warning_that_traces_share_is_said_once(page):
    assert page.text.count("not comparable between optimizers") == 1


def test_cells_that_are_not_ok_are_counted_and_shown(html):
    part = html[html.index('id="analysis-gaussianity-1"') :]
    rows = re.findall(r"<tr>.*?</tr>", re.search(r"<table.*?</table>", part, re.DOTALL).group())
    header, sgd, adam = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]
    # The spoiled coordinate belongs to one layer and so to the network, at one of three steps.
    assert header == ["trace", "cells", "ok", "non finite input"]
    assert sgd == ["sgd", "9", "7", "2"]
    assert adam == ["adam", "12", "12", "0"]
    assert '<td class="status not-ok">non finite input</td>' in part


def test_facts_of_runs_stand_side_by_side(html, runs):
    facts = re.search(r'<table class="facts">.*?</table>', html, re.DOTALL).group()
    text = " ".join(Page(facts.replace("><", "> <")).text.split())
    assert "SGD (lr = 0.1)" in text
    assert "Adam (betas = (0.9, 0.999))" in text
    assert "28 in 2 layers" in text
    assert "92 in 3 layers" in text
    assert "3 × 40 minibatches of 8 with replacement" in text
    assert "dataset digits" in text
    assert "1,437" in text
    assert tracelab.open(runs[0]).run[:8] in text
    assert '<tr class="differs"><th scope="row">optimizer' in facts


def test_every_figure_is_saved_as_svg_and_png(page, page_path):
    figures = [name.removeprefix("figure-") for name in page.ids if name.startswith("figure-")]
    assert figures == [
        "gaussianity-1", "gaussianity-2", "noise_scale", "weight_diffusion",
        "quantiles-1", "quantiles-2", "distance",
    ]  # fmt: skip
    folder = page_path.with_name("both_figures")
    assert {path.name for path in folder.iterdir()} == {
        f"{name}.{kind}" for name in figures for kind in ("svg", "png")
    }
    for name in figures:
        assert f"both_figures/{name}.svg" in page.links
        root = ElementTree.parse(folder / f"{name}.svg").getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        png = (folder / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG\r\n\x1a\n")
        assert png.endswith(b"IEND\xaeB`\x82")


def test_the_page_is_small(page_path):
    assert page_path.stat().st_size < 5e6


def test_the_same_traces_give_the_same_bytes_whatever_matplotlib_is_set_to(
    runs, page_path, tmp_path
):
    with mpl.rc_context({"axes.facecolor": "red", "font.size": 30, "svg.hashsalt": None}):
        before = dict(mpl.rcParams)
        second = report(runs, tmp_path / "both.html")
        assert dict(mpl.rcParams) == before

    def timeless(path):
        return re.sub(r"<time.*?</time>", "", path.read_text())

    assert timeless(second) == timeless(page_path)
    for path in second.with_name("both_figures").iterdir():
        assert path.read_bytes() == (page_path.with_name("both_figures") / path.name).read_bytes()


@pytest.fixture(scope="module")
def partial(runs, tmp_path_factory):
    """A report over an older one, of a trace already open, with plugins that fail or are gone."""

    def broken(_):
        raise RuntimeError("no <ink>")

    folder = tmp_path_factory.mktemp("partial")
    (folder / "report_figures").mkdir()
    (folder / "report_figures" / "old.svg").write_text("old")
    (folder / "report_figures" / "notes.txt").write_text("mine")
    (folder / "report.html").write_text("old")
    analyses = dict(registry.analyses())
    del analyses["weight_diffusion"]
    analyses["noise_scale"] = replace(analyses["noise_scale"], plot=broken)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "analyses", lambda: analyses)
        written = report(tracelab.open(runs[1]), str(folder / "report.html"), title="Just <one>")
    assert written == folder / "report.html"
    return written


def test_a_title_of_ones_own(partial):
    assert "<title>Just &lt;one&gt;</title>" in partial.read_text()


def test_an_older_report_gives_way_and_other_files_stay(partial):
    figures = partial.with_name("report_figures")
    assert not (figures / "old.svg").exists()
    assert (figures / "notes.txt").read_text() == "mine"
    assert {path.name for path in partial.parent.iterdir()} == {"report.html", "report_figures"}


def test_a_figure_that_cannot_be_drawn_costs_only_itself(partial):
    page = Page(partial.read_text())
    assert "No figure: drawing it failed with RuntimeError: no <ink>" in page.text
    assert "figure-noise_scale" not in page.ids
    assert "figure-gaussianity-1" in page.ids


def test_results_of_an_analysis_that_is_not_installed_are_shown_without_figure(partial):
    text = Page(partial.read_text()).text
    assert "No figure: the analysis 'weight_diffusion' is not installed here." in text
    assert "Hoffer, Hubara, Soudry" in text
    assert "The distance from initialization" in text


# --------------------------------------------------------------------------------------- mistakes


def test_without_matplotlib_nothing_is_written(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"a report needs .*'tracelab\[report\]'"):
        report(runs, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_traces_without_results_name_the_command(tmp_path):
    with tracelab.create(tmp_path / "bare.zarr", layers={"w": (2,)}) as writer:
        writer.append("weights", step=0, distance=np.zeros(1), norm=np.ones(1))
    with pytest.raises(UsageError, match=r"bare\.zarr.*tracelab analyze"):
        report(tmp_path / "bare.zarr", tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_no_trace_at_all(tmp_path):
    with pytest.raises(UsageError, match="at least one trace, got none"):
        report([], tmp_path / "report.html")


def test_the_folder_must_exist(runs, tmp_path):
    with pytest.raises(UsageError, match=r"folder .*nowhere does not exist; create it first"):
        report(runs, tmp_path / "nowhere" / "report.html")


def test_output_is_a_page(runs, tmp_path):
    with pytest.raises(UsageError, match=r"must end in \.html, got .*report\.pdf"):
        report(runs, tmp_path / "report.pdf")


def test_output_is_no_folder(runs, tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(UsageError, match="that is a folder"):
        report(runs, tmp_path / "report.html")


def test_figures_cannot_replace_a_file(runs, tmp_path):
    (tmp_path / "report_figures").write_text("mine")
    with pytest.raises(UsageError, match=r"figures cannot be saved to .*that is a file"):
        report(runs[1], tmp_path / "report.html")
    assert (tmp_path / "report_figures").read_text() == "mine"
    assert not (tmp_path / "report.html").exists()


# ----------------------------------------------------------------------------------------- labels


class _At:
    def __init__(self, location, run="0123456789abcdef"):
        self.location, self.run = location, run


@pytest.mark.parametrize(
    ("locations", "labels"),
    [
        (["runs/sgd.zarr", "runs/adam.zarr"], ["sgd", "adam"]),
        (["a/run.zarr", "b/run.zarr/"], ["a/run", "b/run"]),
        (["run.zarr", "run.zarr"], ["run", "run (2)"]),
        (["s3://bucket/x/run.zarr", "C:\\y\\run.zarr.zip"], ["x/run", "y/run"]),
        (["", "plain"], ["01234567", "plain"]),
    ],
)
def test_labels_are_short_and_unique(locations, labels):
    assert _labels([_At(location) for location in locations]) == labels
