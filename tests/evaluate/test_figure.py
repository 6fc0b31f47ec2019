"""The loss curve: its lines, its colours, and nothing that names an address."""

import math
import xml.etree.ElementTree as ElementTree

from unmask.evaluate import figure
from unmask.evaluate.figure import Curves, loss_curve, reliability_curve, smooth, thin


def test_an_element_with_the_colours_of_the_page():
    svg = loss_curve(Curves([(10 * n, 9 - n / 20) for n in range(1, 80)], [(0, 9.0), (400, 5.0)], 6.5), width=5, height=3)
    root = ElementTree.fromstring(svg)
    assert root.tag == "svg" and root.attrib["viewBox"] and "width" not in root.attrib and root.attrib["aria-label"]
    texts = {element.text.strip() for element in root.iter("text")}
    assert {"training", "held-out", "word frequencies", "step", "loss per masked token (nats)"} <= texts
    assert "#0102" not in svg
    for variable in ("--ink", "--grid", "--quiet", "--accent", "--warm"):
        assert f"var({variable})" in svg
    assert "http" not in svg and "xmlns" not in svg and "<script" not in svg


def test_the_same_points_give_the_same_figure():
    curves = Curves([(1, 2.0), (2, 1.0)])
    assert loss_curve(curves, width=5, height=3) == loss_curve(curves, width=5, height=3)


def test_little_to_draw():
    for curves in (Curves([(1, 2.0)]), Curves([], [(0, 2.0)]), Curves([(1, math.nan)]), Curves([])):
        assert loss_curve(curves, width=5, height=3).startswith("<svg")


def test_many_points_become_means(monkeypatch):
    monkeypatch.setattr(figure, "MAX_POINTS", 10)
    points = [(n, 2.0 * n) for n in range(105)]
    found = thin(points)
    assert len(found) == 10 and found[0][0] < 10 and found[-1][0] > 95
    assert all(abs(y - 2 * x) < 1e-9 for x, y in found)
    assert thin([(1, math.inf), (2, math.nan), (3, 1.0)]) == [(3, 1.0)]


def test_smoothing_keeps_a_straight_line():
    points = [(n, 3.0 - n / 100) for n in range(100)]
    assert all(abs(left[1] - right[1]) < 1e-9 for left, right in zip(smooth(points), points, strict=True))
    noisy = [(n, float(n % 2)) for n in range(100)]
    assert max(y for _, y in smooth(noisy)[10:90]) < 0.7


def test_a_reliability_curve():
    points = [{"confidence": 0.1, "accuracy": 0.2, "count": 900}, {"confidence": 0.9, "accuracy": 0.5, "count": 3}]
    svg = reliability_curve(points, width=5, height=4)
    root = ElementTree.fromstring(svg)
    texts = {element.text.strip() for element in root.iter("text")}
    assert {"confidence of the prediction", "share that is right", "as sure as right", "this model", "0%", "100%"} <= texts
    assert root.attrib["aria-label"].startswith("share of right") and "var(--accent)" in svg and "#0102" not in svg
    assert reliability_curve(points, width=5, height=4) == svg and "<svg" in reliability_curve([], width=5, height=4)
