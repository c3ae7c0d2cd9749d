import math

import matplotlib.pyplot as plt
import networkx as nx
import pytest
import torch

from stages.universal.uap_label_graph import (
    MEASURES,
    Settings,
    _dominant,
    _draw,
    _parts,
    _rings,
    label_graph,
    smallest_in_share,
    uap_label_graph,
)


def moves(*pairs, classes=6):
    return torch.tensor(
        [math.nan if pair is None else pair[0] * classes + pair[1] for pair in pairs]
    ).double()


@pytest.fixture
def made_up():
    """0, 1, 2 go to 3; 4 and 5 to each other; 3 goes nowhere."""
    star = [(0, 3), (0, 3), (0, 1), (1, 3), (2, 3), None, None]
    return moves(*star, (4, 5), (5, 4), (5, 4))


def test_edges_lead_to_the_commonest_new_label(made_up):
    graph = label_graph(made_up, 6)
    assert sorted(graph.edges) == [(0, 3), (1, 3), (2, 3), (4, 5), (5, 4)]
    assert graph.edges[0, 3] == {"images": 2, "share": pytest.approx(2 / 3)}


def test_components_and_their_dominant_labels(made_up):
    star, pair = _parts(label_graph(made_up, 6))
    assert (sorted(star), _dominant(star)) == ([0, 1, 2, 3], 3)
    assert (sorted(pair), _dominant(pair)) == ([4, 5], 4)
    assert smallest_in_share(label_graph(made_up, 6)) == 0.5


def test_measures_of_the_made_up_graph(made_up):
    found = {name: measure(made_up, 6) for name, measure in MEASURES.items()}
    assert found == {
        "smallest max_in_degree / edges": 0.5,
        "targets / classes": 0.5,
        "components": 2.0,
        "share_to_commonest_target": 0.5,
    }


def test_without_a_fooled_image_there_is_no_graph():
    nobody = moves(None, None)
    assert label_graph(nobody, 6).number_of_nodes() == 0
    assert math.isnan(MEASURES["smallest max_in_degree / edges"](nobody, 6))
    assert math.isnan(MEASURES["targets / classes"](nobody, 6))


def test_every_label_of_a_component_has_a_place_of_its_own():
    chain = moves((0, 1), (1, 2), (2, 3), (4, 3), (5, 3))
    (part,) = _parts(label_graph(chain, 6))
    places = _rings(part)
    assert set(places) == set(range(6))
    gaps = [math.dist(places[i], places[j]) for i in places for j in places if i < j]
    assert min(gaps) > 0.3
    assert places[_dominant(part)] == (0.0, 0.0)


def test_the_graph_of_a_network(small, executor, looked_at):
    settings = Settings(
        attack=small.attack,
        gradient=small.gradient,
        train_samples=24,
        orders=2,
        samples=40,
        resamples=30,
    )
    network = small.network({0: small.affine(5), 1: small.affine(5, 1)})
    found = uap_label_graph(network, small.dataset(5), settings, executor.scope("uap_label_graph"))
    assert found.numbers["smallest max_in_degree / edges"].seeds == 2
    assert 0 < found.numbers["targets / classes"].value <= 1
    assert set(found.tables["edges"].seed) == {0, 1}
    assert (found.tables["edges"].label != found.tables["edges"].becomes).all()
    assert looked_at(found) == ["figure_4_7", "figure_4_8"]


def test_two_labels_one_above_the_other_can_be_drawn(small, tmp_path):
    figure, axes = plt.subplots(figsize=(2, 2))
    graph = nx.DiGraph()
    graph.add_edge(1, 0, share=1.0)
    _draw(axes, graph, small.dataset(2), "two labels")
    for low, high in (axes.get_xlim(), axes.get_ylim()):
        assert high - low >= 1
    figure.savefig(tmp_path / "two.png")
    plt.close(figure)
