import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from pipeline.report.plots import POINTS, Curve, plot, short, thinned

CURVES = [Curve("one", [0, 1000, 2000], [3.0, 2.0, 1.0]), Curve("two", [2000, 3000], [1.0, 0.5])]


def test_the_svg_follows_the_page():
    svg = plot("loss", CURVES, 'loss & "more"', log=True)
    root = ET.fromstring(svg)
    assert root.get("aria-label") == 'loss & "more"'
    assert "width" not in root.attrib and root.get("viewBox")
    assert set(re.findall(r"var\(--[\w-]+\)", svg)) == {
        "var(--muted)",
        "var(--line)",
        "var(--curve-1)",
        "var(--curve-2)",
    }
    assert not re.search(r"#0102\d\d|font-family|<metadata", svg)
    texts = {element.text for element in root.iter() if element.tag.endswith("text")}
    assert {"one", "two", "images seen", "1k", "2k"} <= texts


def test_ids_of_two_plots_differ():
    first, second = (set(re.findall(r'id="([^"]+)"', plot(name, CURVES, "x"))) for name in ("loss", "rate"))
    assert first and second and not first & second


def test_references_inside_a_plot_hold():
    svg = plot("loss", CURVES, "x")
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    assert used and used <= set(re.findall(r'id="([^"]+)"', svg))


def test_a_name_is_escaped():
    assert "&lt;script&gt;" in plot("x", [Curve("<script>", [1, 2], [1, 2]), CURVES[0]], "x")


def test_a_curve_of_one_point_is_a_dot():
    dot, line = (plot("x", [Curve("one", x, x)], "x") for x in ([5.0], [5.0, 6.0]))
    drawn = "fill: var(--curve-1)"
    assert drawn in dot and drawn not in line


def test_more_curves_than_colours_and_gaps():
    nothing = Curve("gap", [1, 2, 3], [1.0, None, 2.0])
    ET.fromstring(plot("x", [nothing] * 6, "x", log=True))


@pytest.mark.parametrize("length", [1, POINTS, POINTS + 1, 10 * POINTS + 7])
def test_a_long_curve_is_averaged(length):
    x = np.arange(length, dtype=float)
    short_x, short_y = thinned(x, 2 * x + 1)
    assert len(short_x) == len(short_y) <= POINTS
    assert np.allclose(short_y, 2 * short_x + 1)
    assert (np.diff(short_x) > 0).all() and short_x[0] <= length / POINTS


@pytest.mark.parametrize(
    ("value", "told"), [(0, "0"), (250, "250"), (1500, "1.5k"), (2e6, "2M"), (1.25e9, "1.25G"), (0.001, "0.001")]
)
def test_short_numbers(value, told):
    assert short(value) == told
