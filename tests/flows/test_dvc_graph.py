"""The graph and what is to run."""

import pytest

from flows.dvc_graph import Node, changed_stages, descendants, read_graph, stages_to_run
from tests.conftest import Checkout

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
