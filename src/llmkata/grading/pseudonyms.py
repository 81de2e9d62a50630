"""A run under pseudonyms: the same grades, without names, addresses and ids, for people outside the staff.

A learner's pseudonym is an HMAC-SHA-256 (RFC 2104) of the id under a secret key, so it is the same in every run of the
course and nobody without the key can tell whose it is, not even by trying ids. Whoever has the key can.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import hmac
import io
import os
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path

import msgspec

from llmkata.gradebook import MARKED_LATE
from llmkata.gradebook.changes import Action, Change, ChangeLog
from llmkata.gradebook.names import Names
from llmkata.places import CARDS, CHANGES, GRADEBOOK, GRADES, INDEX, RECORDS, ROSTER, SIMILARITY
from llmkata.records import ExerciseRecord, RecordFile, read_records
from llmkata.records.pairs import Pair, Side, write_pairs

from .csvfile import read_table
from .forget import members, names_of, unnamed
from .roster import Roster

#: Digits of a pseudonym, 5 bits each: two of 500 learners have the same one with a probability of 1e-10.
_DIGITS = 10
#: Columns of the roster that tell who somebody is to nobody, besides those of extension days.
_KEPT = ("section",)


class Pseudonyms:
    """The pseudonyms of a course."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def of_file(cls, path: Path) -> Pseudonyms:
        """Those of the key in a file; it is made, for its owner alone, where there is none. Raises ``OSError``."""
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            return cls.of_file(path)
        except FileExistsError:
            pass
        else:
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(32) + "\n")
        return cls(path.read_bytes().strip())

    def of(self, learner: str) -> str:
        """A learner's pseudonym, ``p-`` and letters and digits."""
        return "p-" + base64.b32encode(self._mac("learner", learner)).decode().lower()[:_DIGITS]

    def sha(self, digest: str) -> str:
        """What stands for the digest of a source, which would tell whose it is to whoever has the source."""
        return self._mac("source", digest).hex() if digest else ""

    def _mac(self, what: str, text: str) -> bytes:
        return hmac.new(self._key, f"{what}\0{text}".encode("utf-8", "surrogatepass"), hashlib.sha256).digest()


def write_run(folder: Path, target: Path, pseudonyms: Pseudonyms, roster: Roster | None) -> None:
    """Write records, changes by hand, extensions and pairs of the run in ``folder`` into ``target`` under pseudonyms; what
    was there goes.

    Kept sources stay behind, as does what may hold a name in any spelling: what learners' code printed, names of files,
    remarks about them, comments by hand, and reasons that are about one learner. Free texts that stay (what was compared,
    and in which line) lose the names of the learner and of the group.
    """
    _clear(target)
    records = read_records([folder / RECORDS]).records
    by_learner: dict[str, list[ExerciseRecord]] = {}
    for record in records:
        by_learner.setdefault(record.learner, []).append(record)
    known = {learner: names_of(learner, roster) for learner in by_learner}
    # In the order of the pseudonyms: that of the ids would tell.
    ordered = sorted(by_learner, key=pseudonyms.of)
    RecordFile(target / RECORDS).append(*(_record(r, pseudonyms, known) for name in ordered for r in by_learner[name]))
    changes = [change for change in ChangeLog(folder / CHANGES).read() if change.action is not Action.comment]
    if changes:
        (target / CHANGES).write_bytes(b"".join(msgspec.json.encode(_change(c, pseudonyms)) + b"\n" for c in changes))
    if (folder / ROSTER).is_file():
        (target / ROSTER).write_text(_roster(folder / ROSTER, pseudonyms), encoding="utf-8", newline="")
    if (folder / SIMILARITY).is_file():
        pairs = msgspec.json.decode((folder / SIMILARITY).read_bytes(), type=list[Pair])
        write_pairs(target / SIMILARITY, sorted(
            (Pair(p.exercise, _side(p.left, pseudonyms), _side(p.right, pseudonyms)) for p in pairs),
            key=lambda p: (-p.share, p.left.learner, p.right.learner),
        ))  # fmt: skip


def resolved(name: str, pseudonyms: Pseudonyms, learners: Iterable[str]) -> list[str]:
    """The learners whose pseudonym ``name`` is; case does not matter."""
    return [learner for learner in learners if pseudonyms.of(learner) == name.strip().lower()]


def _clear(target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in (RECORDS, CHANGES, ROSTER, SIMILARITY, GRADEBOOK, INDEX, GRADES):
        (target / name).unlink(missing_ok=True)
    shutil.rmtree(target / CARDS, ignore_errors=True)


def _record(record: ExerciseRecord, pseudonyms: Pseudonyms, known: dict[str, Names]) -> ExerciseRecord:
    mentioned = {record.learner, *(name for note in record.notes for name in members(note))}
    for learner in sorted(mentioned):
        record = unnamed(record, known.get(learner) or Names(learner), pseudonyms.of(learner))
    checks = [msgspec.structs.replace(check, staff_output="") for check in record.checks]
    slug = record.exercise.rpartition("/")[2]
    return msgspec.structs.replace(
        record, learner=pseudonyms.of(record.learner), checks=checks, ignored=[],
        files=[name for file in record.files if (name := file.rpartition("/")[2]) in (f"{slug}.py", f"{slug}.ipynb")],
        notes=[note for note in record.notes if note == MARKED_LATE or members(note)],
        submission_sha=pseudonyms.sha(record.submission_sha), key=pseudonyms.sha(record.key),
    )  # fmt: skip


def _change(change: Change, pseudonyms: Pseudonyms) -> Change:
    """The change under a pseudonym. What staff wrote about one learner stays behind."""
    pins = {
        pseudonyms.of(learner): msgspec.structs.replace(pin, submission_sha=pseudonyms.sha(pin.submission_sha))
        for learner, pin in change.pins.items()
    }
    if not change.learner:
        return msgspec.structs.replace(change, pins=pins)
    return msgspec.structs.replace(change, learner=pseudonyms.of(change.learner), pins=pins, text="")


def _roster(path: Path, pseudonyms: Pseudonyms) -> str:
    """Who is in the class, in which section, with how many extension days."""
    table = read_table(path, "id", ["id"])
    kept = [name for name in table.columns if name in _KEPT or name.startswith("extension days")]
    lines = sorted([pseudonyms.of(row.get("id")), *(row.get(name) for name in kept)] for row in table.rows)
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([["id", *kept], *lines])
    return file.getvalue()


def _side(side: Side, pseudonyms: Pseudonyms) -> Side:
    return msgspec.structs.replace(side, learner=pseudonyms.of(side.learner), sha=pseudonyms.sha(side.sha))
