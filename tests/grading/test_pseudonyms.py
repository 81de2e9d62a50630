"""Pseudonyms: the same in every run, telling nothing without the key."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from llmkata.grading.pseudonyms import Pseudonyms, resolved


def test_the_key_is_made_once_for_its_owner_and_everything_hangs_on_it(tmp_path: Path) -> None:
    place = tmp_path / ".kata" / "pseudonyms.key"
    first = Pseudonyms.of_file(place)
    key = place.read_text().strip()
    assert len(key) == 64 and int(key, 16)
    if os.name == "posix":
        assert stat.S_IMODE(place.stat().st_mode) == 0o600
    again, other = Pseudonyms.of_file(place), Pseudonyms.of_file(tmp_path / "other.key")
    learners = [f"u{i}" for i in range(500)] + ["Zoë", "\udcff", "U1"]
    made = [first.of(learner) for learner in learners]
    assert made == [again.of(learner) for learner in learners]
    assert len(set(made)) == len(made) and not set(made) & {other.of(learner) for learner in learners}
    assert all(len(name) == 12 and name.startswith("p-") and name[2:].isalnum() and name == name.lower() for name in made)
    assert place.read_text().strip() == key


def test_a_pseudonym_is_resolved_with_the_key_alone(tmp_path: Path) -> None:
    ours, other = Pseudonyms(b"k" * 64), Pseudonyms(b"o" * 64)
    assert resolved(f" {ours.of('ada').upper()}", ours, ["bob", "ada"]) == ["ada"]
    assert resolved(ours.of("ada"), other, ["bob", "ada"]) == [] == resolved(ours.of("ada"), ours, ["bob"])


@pytest.mark.parametrize("digest", ["", "a" * 64])
def test_digests_of_sources_are_told_apart_and_not_told(digest: str) -> None:
    ours = Pseudonyms(b"k" * 64)
    assert ours.sha(digest) == ours.sha(digest) and (ours.sha(digest) == "") == (digest == "")
    assert not digest or (ours.sha(digest) != digest and ours.sha(digest) != ours.sha("b" * 64))
