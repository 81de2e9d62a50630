"""Names that Canvas and Moodle give to what they let a teacher download at once.

Canvas, *Download Submissions* (``lib/content_zipper.rb``): loose files ::

    berganna_LATE_340934_208490284_self_attention-1.py    last and first name joined; LATE; user, attachment; name
    LATE_anon_aB3dE_208490284_self_attention.py           anonymous grading
    berganna_340934_text.html                             a text entered on the page

``-1`` before the suffix marks the second file of that name a learner handed in: attempt 2.

Moodle, *Download all submissions* (``mod/assign/classes/downloader.php``): a folder for each learner, or loose files ::

    Anna Berg_12345_assignsubmission_file/self_attention.py        (with a trailing _ before Moodle 4)
    Anna Berg_12345_assignsubmission_file_self_attention.py
    Participant_12345_assignsubmission_file/self_attention.py      blind marking

What follows the system's part of a name is the learner's to choose. The name of a person may be, too: where a name can be
read in two ways nobody is guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .archive import is_archive

_CANVAS = re.compile(r"(?:(?P<name>[^_\W]\w*?)_)??(?P<late>LATE_)?(?P<user>\d+|anon_\w+?)_(?P<attachment>\d+)_(?P<file>.+)")
_CANVAS_TEXT = re.compile(r"(?:(?P<name>[^_\W]\w*?)_)??(?P<late>LATE_)?(?P<user>\d+|anon_\w+?)_(?P<file>(?:text|link)\.html)")
_MOODLE = re.compile(r"(?P<name>[^_]+)_(?P<user>\d+)_assignsubmission_(?P<plugin>[a-z]+)(?:_(?P<file>.*))?")
_TWICE = re.compile(r"(?:\d+_)")
_ATTEMPT = re.compile(r"(?P<stem>.+)-(?P<again>[1-9]\d{0,2})(?P<suffix>\.py|\.ipynb|\.zip|\.tar\.gz|\.tgz|\.tar)", re.IGNORECASE)


@dataclass(frozen=True)
class BulkName:
    """What the name of a file or folder of a bulk download says."""

    system: str  # "Canvas" | "Moodle"
    #: The person's name as the system writes it; "" where it is withheld.
    person: str
    #: The number of the user (Canvas), or of the participant in this one assignment (Moodle).
    user: str
    #: The learner's name for the file; "" for a Moodle folder, which holds the files.
    file: str
    late: bool = False
    #: Counted from 1.
    attempt: int = 1
    #: Whether it is something typed into the page rather than a file.
    typed: bool = False
    #: Whether it can be read in two ways, of another person too.
    doubtful: bool = False


def bulk_name(name: str, *, folder: bool) -> BulkName | None:
    """What a name says; None where it is neither Canvas's nor Moodle's."""
    if match := _MOODLE.fullmatch(name):
        file = match["file"] or ""
        if folder == bool(file):
            return None
        typed = match["plugin"] != "file"
        return BulkName("Moodle", match["name"].strip(), match["user"], file, typed=typed)
    if folder:
        return None
    if match := _CANVAS_TEXT.fullmatch(name):
        return BulkName("Canvas", match["name"] or "", match["user"], match["file"], bool(match["late"]), typed=True)
    if match := _CANVAS.fullmatch(name):
        file, attempt = _attempt(match["file"])
        # A file of an exercise has the exercise's name, an archive may have any: one that begins with a number may be
        # what a person called "berg_340934" made of it.
        doubtful = is_archive(file) and bool(_TWICE.match(file))
        return BulkName("Canvas", match["name"] or "", match["user"], file, bool(match["late"]), attempt, doubtful=doubtful)
    return None


def _attempt(file: str) -> tuple[str, int]:
    match = _ATTEMPT.fullmatch(file)
    return (match["stem"] + match["suffix"], int(match["again"]) + 1) if match else (file, 1)
