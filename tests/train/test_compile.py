"""train.compile: the networks that images run through are really traced, and the step is the same."""

import functools
from typing import Any

import pytest
import torch

from tests.train.runs import first_gradients, make_method

BATCH = 6


class Traced:
    """A backend that runs what it is given, and remembers how often it was given something."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        self.graphs += any(node.op == "call_function" for node in graph.graph.nodes)
        return graph.forward


@pytest.mark.parametrize(("name", "networks"), [("byol", 2), ("dinov2", 3), ("mae", 1)])
def test_networks_are_traced_and_gradients_stay(name: str, networks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = first_gradients(make_method(name), batch_size=BATCH)
    torch.compiler.reset()
    traced = Traced()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=traced))
    method = make_method(name)
    found = first_gradients(method, batch_size=BATCH, compile=True)
    assert traced.graphs >= networks  # a student, a teacher, views of another size
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-6, msg=key)
