"""Results signed with the instructor's key: who has the key can tell a file of a run from one that was edited.

``signatures.jsonl`` beside the results holds one line per file, each good by itself, so that one line can go with one
card. The signature is HMAC-SHA-256 (RFC 2104) over the line's other fields: whoever can verify can also sign, so the
key stays with the staff. It says that the holder of the key wrote these bytes, not that the grading was right.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = "signatures.jsonl"
#: The key itself, or a file that holds it.
KEY, KEY_FILE = "KATA_SIGNING_KEY", "KATA_SIGNING_KEY_FILE"
_SCHEMA, _ALGORITHM = "llmkata/signature/v1", "HMAC-SHA-256"
#: 128 bits, written as hexadecimal digits.
_LEAST_KEY = 32
_CONTEXT = ("GITHUB_REPOSITORY", "GITHUB_SHA", "GITHUB_RUN_ID")


class KeyFault(ValueError):
    """The key cannot be read or is too short; the message says how to make one."""


@dataclass(frozen=True)
class Finding:
    """What verifying a file came to."""

    good: bool
    #: One sentence.
    said: str
    signed_at: str = ""
    #: Where it was signed: repository, commit, run, where they were known.
    context: Mapping[str, str] | None = None


def key_of(environment: Mapping[str, str]) -> bytes | None:
    """The instructor's key, or None where none is set. Raises KeyFault."""
    text = environment.get(KEY, "").strip()
    path = environment.get(KEY_FILE, "")
    if not text and path:
        try:
            text = Path(path).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise KeyFault(f"{KEY_FILE}={path}: {error}") from None
    if not text and not path:
        return None
    if len(text) < _LEAST_KEY:
        make = "python3 -c 'import secrets; print(secrets.token_hex(32))'"
        raise KeyFault(
            f"the signing key has {len(text)} characters, at least {_LEAST_KEY} are needed; make one with {make}"
        )
    return text.encode()


def sign_files(folder: Path, files: Iterable[Path], key: bytes, environment: Mapping[str, str] = os.environ) -> Path:
    """Write ``folder/signatures.jsonl`` over ``files``, which lie below ``folder``; what it held is replaced."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    context = {name: environment[name] for name in _CONTEXT if environment.get(name)}
    lines = []
    for path in sorted(files):
        line = {
            "schema": _SCHEMA,
            "algorithm": _ALGORITHM,
            "key": _key_id(key),
            "file": path.relative_to(folder).as_posix(),
            "sha256": _digest(path),
            "signed_at": now,
            "context": context,
        }
        lines.append(json.dumps(line | {"signature": _mac(line, key)}) + "\n")
    target = folder / FILE
    partial = target.with_name(f"{FILE}.{os.getpid()}")
    partial.write_text("".join(lines), "utf-8")
    partial.replace(target)
    return target


def verify_file(path: Path, signatures: Path, key: bytes) -> Finding:
    """Hold ``path`` against the lines of ``signatures``. Raises ``OSError`` for a file that cannot be read.

    The file is found by its digest; one that has only been renamed stays good.
    """
    digest, lines = _digest(path), _lines(signatures)
    named = [line for line in lines if line.get("file", "").rpartition("/")[2] == path.name]
    for line in lines:
        if line.get("sha256") != digest:
            continue
        if line.get("key") != _key_id(key):
            return Finding(False, "signed with another key")
        told = {name: value for name, value in line.items() if name != "signature"}
        if not hmac.compare_digest(str(line.get("signature", "")).encode(), _mac(told, key).encode()):
            return Finding(False, "the signature is wrong: the line about it was edited")
        return Finding(True, f"signed as {line['file']}", str(line["signed_at"]), line["context"])
    if named:
        return Finding(False, "the file was changed after it was signed")
    return Finding(False, f"no signature of it in {signatures}: edited since, or never signed")


def signatures_for(path: Path) -> Path | None:
    """The nearest ``signatures.jsonl`` beside a file or above it."""
    for folder in path.resolve().parents:
        if (folder / FILE).is_file():
            return folder / FILE
    return None


def _lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    for text in path.read_text("utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and line.get("schema") == _SCHEMA and isinstance(line.get("file"), str):
            lines.append(line)
    return lines


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _key_id(key: bytes) -> str:
    """Tells keys apart without telling anything of them."""
    return hmac.new(key, b"key id", hashlib.sha256).hexdigest()[:16]


def _mac(line: Mapping[str, Any], key: bytes) -> str:
    text = json.dumps(line, sort_keys=True, separators=(",", ":"))
    return hmac.new(key, b"llmkata\0" + text.encode(), hashlib.sha256).hexdigest()
