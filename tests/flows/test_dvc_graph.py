"""The graph and what is to run."""

import pytest

from flows.dvc_graph import Node, changed_stages, descendants, read_graph, span, stages_to_run
from tests.conftest import ROOT, Checkout

CHAIN = {
    "download": Node("download", (), True),
    "left": Node("left", ("download",), False),
    "right": Node("right", ("download",), False),
    "join": Node("join", ("left", "right"), False),
    "register": Node("register", ("join",), True),
}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (set(), ["download", "register"]),
        ({"left"}, ["download", "left", "join", "register"]),
        ({"join"}, ["download", "join", "register"]),
        ({"left", "right"}, ["download", "left", "right", "join", "register"]),
    ],
)
def test_only_changed_stages_their_descendants_and_the_watchful_run(changed: set[str], expected: list[str]) -> None:
    assert stages_to_run(CHAIN, changed) == expected


def test_descendants_are_all_stages_that_wait_for_one() -> None:
    assert descendants(CHAIN, "download") == {"left", "right", "join", "register"}
    assert descendants(CHAIN, "right") == {"join", "register"} and not descendants(CHAIN, "register")


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (None, None, set(CHAIN)),
        ("left", None, {"left", "join", "register"}),
        (None, "right", {"download", "right"}),
        ("right", "join", {"right", "join"}),
    ],
)
def test_a_start_and_an_end_cut_the_graph(start: str | None, end: str | None, expected: set[str]) -> None:
    assert span(CHAIN, start, end) == expected


def test_a_name_without_instance_means_all_of_them_and_a_wrong_one_is_refused_with_the_nearest() -> None:
    graph = {name: Node(name, (), False) for name in ("evaluate@one", "evaluate@two", "report")}
    assert span(graph, "evaluate", None) == {"evaluate@one", "evaluate@two"}
    with pytest.raises(ValueError, match="Did you mean report"):
        span(graph, None, "reprot")
    with pytest.raises(ValueError, match="no stage lies between"):
        span(CHAIN, "join", "left")


def test_every_result_reaches_other_machines_through_the_cache() -> None:
    """All but report.json, which git tracks; flows/checkout.py hands that one over."""
    from dvc.repo import Repo

    with Repo(str(ROOT)) as repo:
        outside = {out.def_path for stage in repo.index.stages for out in stage.outs if not out.use_cache}
    assert outside == {"data/reports/report.json"}


def test_the_graph_is_that_of_dvc_and_in_running_order(checkout: Checkout) -> None:
    edges = {
        "join": ["left", "right"],
        "right": ["download"],
        "left": ["download"],
        "download": [],
        "register": ["join"],
    }
    checkout.pipeline(edges)
    graph = read_graph(checkout.root)
    assert {name: sorted(node.upstream) for name, node in graph.items()} == edges
    order = list(graph)
    assert all(order.index(upstream) < order.index(name) for name, node in graph.items() for upstream in node.upstream)
    assert {name for name, node in graph.items() if node.always} == {"download", "register"}


def test_an_edit_is_seen_without_running_anything(checkout: Checkout) -> None:
    checkout.pipeline({"download": [], "left": ["download"]})
    assert "left" in changed_stages(checkout.root)
    assert checkout.runs_of("left") == 0
