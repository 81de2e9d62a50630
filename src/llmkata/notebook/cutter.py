"""The step of ``nbgrader generate_assignment`` that takes the model answer out: each region leaves what the stub has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbgrader.preprocessors import ClearSolutions

from llmkata.authoring.stub import regions

from .nbgrader import cut_cell

if TYPE_CHECKING:
    from nbformat import NotebookNode


class CutStub(ClearSolutions):
    """nbgrader's own step, but ``raise NotImplementedError("task 1: ...")`` in place of ``# YOUR CODE HERE``."""

    def _replace_solution_region(self, cell: NotebookNode, language: str) -> bool:
        if cell.cell_type != "code" or not regions(cell.source):
            return False
        cell.source = cut_cell(cell.source)
        return True
