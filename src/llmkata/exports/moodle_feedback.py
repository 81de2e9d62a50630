"""The zip for Moodle's *Upload multiple feedback files in a zip*, for an assignment with feedback type "Feedback files".

Moodle finds whose a file is by the folder's name, ``Full name_NUMBER_assignsubmission_file``, as it names folders when
submissions are downloaded; NUMBER is the participant's, which the grading worksheet tells as "Participant NUMBER".
Source: mod/assign/feedback/file/importziplib.php.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .feedback import documents
from .formats import ExportError

if TYPE_CHECKING:
    from llmkata.grading.csvfile import Row

    from .people import People
    from .results import Results

_NUMBERED = re.compile(r"\D*(\d+)\s*$")
#: The worst that a file system or Moodle makes of a name.
_UNSAFE = re.compile(r"[^\w .'-]")


def files(view: Results, people: People | None) -> Iterator[tuple[str, bytes]]:
    """``moodle-feedback.zip``. Learners that are not on the list are left out.

    Raises ExportError where there is no list with the column Identifier ("Participant 12345").
    """
    if people is None or not people.has("identifier"):
        raise ExportError(
            "Moodle knows participants by a number: give the assignment's grading worksheet as --people "
            "(View all submissions, Download grading worksheet)"
        )
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for learner, row in people.matched(view.cards).items():
            for name, data in documents(view.cards[learner]):
                if not name.endswith(".json"):
                    # A fixed time: the same results make the same file.
                    entry = zipfile.ZipInfo(f"{folder(people, row)}/{name}", (2000, 1, 1, 0, 0, 0))
                    entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
                    archive.writestr(entry, data)
    yield "moodle-feedback.zip", content.getvalue()


def folder(people: People, row: Row) -> str:
    """The folder of a participant. Raises ExportError where the Identifier ends with no number."""
    found = _NUMBERED.match(row.get("identifier"))
    if found is None:
        raise ExportError(f"{people.path}:{row.line}: Identifier is {row.get('identifier')!r}, not 'Participant 12345'")
    # Moodle cuts at underscores: the name must have none.
    name = _UNSAFE.sub("", row.get("full name").replace("_", " ")).strip(" .")[:60] or "participant"
    return f"{name}_{found[1]}_assignsubmission_file"
