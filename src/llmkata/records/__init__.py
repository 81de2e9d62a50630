"""Records: the schema of results and the append-only file that holds them."""

from .schema import (
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

__all__ = [
    "RECORD_SCHEMA", "CheckRecord", "Diagnosis", "Evidence", "ExerciseRecord", "Measure", "Outcome", "Provenance",
    "Spot", "State", "Trust", "decode", "encode",
]
