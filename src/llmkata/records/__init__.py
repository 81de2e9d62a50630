"""Records: the schema of results and the append-only file that holds them."""

from .schema import (
    NOT_STARTED,
    RECORD_SCHEMA,
    CheckRecord,
    Diagnosis,
    Evidence,
    ExerciseRecord,
    Measure,
    Outcome,
    Provenance,
    Spot,
    State,
    Trust,
    decode,
    encode,
)
from .store import Fault, Reading, RecordError, RecordFile, latest, rank, read_records

__all__ = [
    "NOT_STARTED", "RECORD_SCHEMA", "CheckRecord", "Diagnosis", "Evidence", "ExerciseRecord", "Fault", "Measure", "Outcome",
    "Provenance", "Reading", "RecordError", "RecordFile", "Spot", "State", "Trust", "decode", "encode", "latest",
    "rank", "read_records",
]
