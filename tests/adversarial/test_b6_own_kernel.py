"""B6: name a kernel of one's own, which runs cells as it likes."""

import json

from ..toy.harness import SOLUTION, grade
from .arena import handed_in, notebook

KERNEL = {"kernelspec": {"name": "all-pass", "display_name": "Python 3", "language": "python",
                         "argv": ["/bin/true", "{connection_file}"]}}


def test_no_kernel_is_started(tmp_path, earns_nothing):
    cells = notebook(SOLUTION, "def magic(n): return 5", **KERNEL)
    earns_nothing(grade(handed_in(tmp_path, {"module1/toy.ipynb": cells}).source.decode(), only="test_magic"), "test_magic")


def test_another_language_is_told(tmp_path):
    given = handed_in(tmp_path, {"module1/toy.ipynb": notebook(SOLUTION, language_info={"name": "bash"})})
    assert given.source is None and "not for Python" in given.cause


def test_an_honest_notebook_passes(tmp_path):
    given = handed_in(tmp_path, {"module1/toy.ipynb": notebook(SOLUTION, **KERNEL, language_info={"name": "python"})})
    assert grade(given.source.decode()).points == 21


def test_whoever_asks_the_notebook_starts_what_it_names():
    assert json.loads(notebook(**KERNEL))["metadata"]["kernelspec"]["argv"][0] == "/bin/true"
