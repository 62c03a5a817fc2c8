import json

from tracelab import registry


def test_lists_every_analysis(run):
    result = run("analyses")
    assert result.exit_code == 0
    heading, *lines = result.stdout.splitlines()
    assert heading.split() == ["analysis", "summary"]
    assert [line.split()[0] for line in lines] == sorted(registry.analyses())


def test_describes_one_completely(run):
    text = run("analyses", "noise_scale").stdout
    analysis = registry.analysis("noise_scale")
    for each in (*analysis.inputs, *analysis.outputs, *analysis.parameters):
        assert getattr(each, "variable", each).name in text
    for words in (
        "noise@batch_size",
        "(loss/weight)^2",
        "0.5 to 0.9999",
        "-p noise_scale.NAME=VALUE",
        "https://arxiv.org/abs/1812.06162",
    ):
        assert words in text


def test_choices_and_defaults_read_as_the_option_takes_them(run):
    text = run("analyses", "gaussianity").stdout
    assert "batches | pooled | standardized" in text
    (line,) = (line for line in text.splitlines() if line.strip().startswith("batch_size"))
    assert line.split()[1] == "none"


def test_json_round_trips_the_declaration(run):
    everything = json.loads(run("analyses", "--json").stdout)
    assert [each["name"] for each in everything] == sorted(registry.analyses())
    one = json.loads(run("analyses", "noise_scale", "--json").stdout)
    assert one in everything
    assert one["cell"] == ["step", "layer"]
    assert one["parameters"] == [
        {
            "name": "confidence",
            "default": 0.95,
            "choices": [],
            "low": 0.5,
            "high": 0.9999,
            "description": "level of the intervals",
        }
    ]
    assert {
        "name": "status",
        "dims": ["step", "layer"],
        "units": "1",
        "dtype": "uint8",
    }.items() <= (one["outputs"][-1].items())
    assert one["references"][0]["url"] == "https://arxiv.org/abs/1812.06162"


def test_an_unknown_name(run):
    result = run("analyses", "tail_indx")
    assert result.exit_code == 2
    assert result.stderr == "Error: no analysis is called 'tail_indx'; did you mean 'tail_index'?\n"
