"""S6: do the work in operators that a counter prices at nothing."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llmkata.records import Outcome

from ..toy.harness import grade, named, solution_with
from .arena import shared

#: Each computes the product; torch's own counter says 0 for all of them.
PRICED = {
    "matrix times vector": "torch.stack([w.t().mv(row) for row in x])",
    "vector times vector": "torch.stack([torch.stack([torch.dot(r, c) for c in w.t()]) for r in x])",
    "distances": "(x.square().sum(1)[:, None] + w.square().sum(0) - torch.cdist(x, w.t()).square()) / 2",
    "sum of outer products": "sum(torch.outer(a, b) for a, b in zip(x.t(), w))",
}
BELOW_THE_FLOOR = {
    "elementwise": "(x[:, :, None] * w).sum(1)",
    "cumulative": "(x[:, :, None] * w).cumsum(1)[:, -1]",
}
REFUSED = {
    "weights in bags": "torch.stack([torch.nn.functional.embedding_bag(torch.arange(len(w))[None], w, mode='sum',"
                       " per_sample_weights=row[None])[0] for row in x])",
    "sparse": "torch.sparse.mm(x.to_sparse(), w)",
}


def graded(expression):
    source = solution_with(f"import torch\ndef project(x, w):\n    return {expression}\n")
    record = grade(source, only="test_project_flops")
    assert named(record, "test_project").outcome is Outcome.passed  # the answers are right
    return record


@pytest.mark.parametrize("expression", PRICED.values(), ids=PRICED)
def test_it_is_priced(expression):
    check = named(graded(expression), "test_project_flops")
    seen = check.measures[0].value if check.measures else check.cause
    assert seen == 8192 or check.outcome is Outcome.failed, seen


@pytest.mark.parametrize("expression", BELOW_THE_FLOOR.values(), ids=BELOW_THE_FLOOR)
def test_less_than_possible_is_no_credit(expression, earns_nothing):
    failed = earns_nothing(graded(expression), "test_project_flops")
    assert failed.flags or "do not compute the answer" in failed.cause or "cannot be counted" in failed.cause


@pytest.mark.parametrize("expression", REFUSED.values(), ids=REFUSED)
def test_what_has_no_price_is_refused(expression, earns_nothing):
    assert "cannot be counted" in earns_nothing(graded(expression), "test_project_flops").cause


def test_honest_work_passes(honest):
    assert named(honest, "test_project_flops").outcome is Outcome.passed


def test_the_counter_of_torch_says_nothing():
    x, w = torch.randn(32, 16), torch.randn(16, 8)
    for expression in (*PRICED.values(), *BELOW_THE_FLOOR.values()):
        project = shared(f"import torch\ndef project(x, w):\n    return {expression}\n")["project"]
        with FlopCounterMode(display=False) as counter:
            project(x, w)
        assert counter.get_total_flops() == 0, expression
