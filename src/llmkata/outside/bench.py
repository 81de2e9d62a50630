"""The bench seen from the trusted side: a sandboxed process without learner code that runs recorded programs."""

from __future__ import annotations

from typing import Any

from llmkata.wire import TRUSTED, Closed, Encoder, Kind, Late, Until, WireError, decode
from llmkata.wire.encode import refuse

from .process import Process, start_process

_SECONDS = 60.0
_ANSWER = {"outputs", "total", "segments", "constants", "reads", "timeline", "names"}


class BenchRefused(Exception):
    """The program could not be run: the reason, for the learner."""


class Bench:
    """Runs programs one after the other; started on first use from the template of ``profile``, which is warm already,
    and replaced when it dies."""

    def __init__(self, policy: dict[str, Any] | None = None, profile: str = "base") -> None:
        self._profile = profile
        self._policy = dict(policy or {}, role="llmkata.bench.process")
        self._process: Process | None = None
        self._seq = 0
        #: CPU seconds of the processes that ended.
        self.cpu_seconds = 0.0

    def run(self, program: bytes, inputs: dict[str, Any], measure: list[str]) -> dict[str, Any]:
        """-> what ``bench.recorded.run_recorded`` gives. Raises BenchRefused."""
        if type(program) is not bytes:
            raise BenchRefused("what was recorded is no program")
        encoder = Encoder(refuse, TRUSTED)
        encoder.value({"program": program, "inputs": inputs, "measure": measure})
        if self._process is None:
            self._process = start_process(self._profile, self._policy)
        self._seq += 1
        patience = Until(_SECONDS)
        try:
            self._process.channel.send(Kind.request, self._seq, encoder.out, patience)
            kind, seq, body = self._process.channel.receive(patience)
            if seq != self._seq:
                raise WireError("an answer to another request")
            answer = decode(body)
        except Late:
            self.close()
            raise BenchRefused(f"running the recorded program again took more than {_SECONDS:.0f} s") from None
        except (Closed, WireError) as e:
            self.close()
            raise BenchRefused(f"the recorded program ended the process that ran it ({e})") from None
        if kind is Kind.error:
            raise BenchRefused(str(answer)[:2000])
        if type(answer) is not dict or not _ANSWER <= set(answer):
            self.close()
            raise BenchRefused("the process that ran the recorded program did not answer as it should")
        return answer

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self.cpu_seconds += self._process.kill()["cpu"] or 0.0
            self._process = None
