"""What one learner handed in for one exercise."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from llmkata.gradebook import MARKED_LATE
from llmkata.records import Evidence, ExerciseRecord, State


@dataclass(frozen=True)
class Submission:
    """What one learner handed in for one exercise. Texts are plain: control characters are escaped."""

    learner: str
    exercise_id: str
    #: The Python source in UTF-8 without byte order mark; None where there is nothing to grade (see ``state``).
    source: bytes | None = None
    #: Path within the learner's folder, "" where no file was found.
    file: str = ""
    #: ISO 8601 with offset, "" where unknown. File times are the learner's to set, so they are not used.
    submitted_at: str = ""
    #: Entries of the learner's folder that play no part, with the reason where it is not plain.
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    #: Why there is nothing to grade, one or two sentences with the next step; "" where there is a source.
    cause: str = ""
    #: The line the Python compiler refuses.
    evidence: Evidence | None = None
    #: Whether the system it was handed in to calls it late.
    marked_late: bool = False
    #: The other learners it counts for: members of the group.
    mates: tuple[str, ...] = ()

    @property
    def state(self) -> State | None:
        """``missing`` or ``unreadable``; None where ``source`` can be graded."""
        if self.source is not None:
            return None
        return State.unreadable if self.file else State.missing

    def record(self) -> ExerciseRecord:
        """The record of a submission that cannot be graded. Raises ``ValueError`` for one that can."""
        if self.state is None:
            raise ValueError(f"{self.file} of {self.learner} is there to be graded")
        return self.signed(ExerciseRecord(self.learner, self.exercise_id, self.state, cause=self.cause,
                                          evidence=self.evidence))

    def signed(self, record: ExerciseRecord) -> ExerciseRecord:
        """``record``, which now says whose it is, when it was handed in, and what became of the files."""
        record.learner, record.submitted_at = self.learner, self.submitted_at
        record.files = [self.file] if self.file else []
        marks = [MARKED_LATE] if self.marked_late else []
        record.ignored, record.notes = self.ignored, [*self.notes, *marks, *record.notes]
        return record

    def shared(self, record: ExerciseRecord) -> list[ExerciseRecord]:
        """``record`` and its like for each of ``mates``."""
        return [record, *(msgspec.structs.replace(record, learner=mate) for mate in self.mates)]
