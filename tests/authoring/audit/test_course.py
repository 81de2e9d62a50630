"""Three exercises of the course are clean by the quick audit (results kept under .kata/audit are used)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmkata.authoring.audit.report import to_text
from llmkata.authoring.audit.run import audit_exercises
from llmkata.course import load_course

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("name", ["module0/matrix_calculus", "module2/self_attention", "module6/kv_cache"])
def test_the_quick_audit_is_clean(name: str) -> None:
    course = load_course(ROOT)
    (audit,) = audit_exercises(course, [course.exercise(name)], quick=True, workers=os.cpu_count() or 1,
                               progress=lambda total: lambda trial: None)
    assert audit.clean, to_text(audit, quick=True)
