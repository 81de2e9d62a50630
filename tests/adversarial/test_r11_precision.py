"""R11: another dtype than promised, or one of less precision inside."""

import numpy as np
import torch

from llmkata.records import Outcome

from ..toy.harness import grade, named, solution_with

WIDER = "def project(x, w): return (x.double() @ w.double())"
HALF = "import torch\ndef project(x, w): return x.half() @ w.half()"
HALF_INSIDE = "import torch\ndef project(x, w): return (x.bfloat16() @ w.bfloat16()).float()"


def test_the_dtype_is_part_of_the_answer(earns_nothing):
    for attack, name in ((WIDER, "float64"), (HALF, "float16")):
        failed = earns_nothing(grade(solution_with(attack), only="test_project"), "test_project")
        assert f"has dtype {name}, it must have float32" in failed.cause


def test_less_precision_inside_shows(earns_nothing):
    failed = earns_nothing(grade(solution_with(HALF_INSIDE), only="test_project"), "test_project")
    assert "differs in" in failed.cause


def test_honest_work_passes(honest):
    assert named(honest, "test_project").outcome is Outcome.passed


def test_numpy_compares_across_dtypes_and_loosely():
    x, w = torch.randn(3, 4), torch.randn(4, 2)
    assert np.allclose((x.double() @ w.double()).numpy(), (x @ w).numpy(), atol=1e-5)
    assert np.allclose((x.bfloat16() @ w.bfloat16()).float().numpy(), (x @ w).numpy(), atol=0.1)
