"""The loop itself: waits for a save, a key, a verdict or a new window size, and redraws."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console

from llmkata.records import CheckRecord, ExerciseRecord

from .judge import Judge, first_failure
from .keys import keys, read_key
from .screen import screen

#: What each key does is answered by the caller: key -> text to show, or None for what the loop does itself.
Actions = dict[str, Callable[["Watch"], str | None]]


class Watch:
    """State of one ``kata watch``: the exercise, its last verdict, how many hints are open."""

    def __init__(self, course: Any, exercise: Any, *, actions: Actions, console: Console, poll: bool = False,
                 on_record: Callable[[ExerciseRecord], None] = lambda r: None) -> None:
        self.course, self.console, self.poll_files = course, console, poll
        self.actions, self.on_record = actions, on_record
        self.interactive = sys.stdin.isatty() and console.is_terminal
        self.over = False
        self.note = ""
        #: The first failure of the run under way, as soon as it is known.
        self._early: CheckRecord | None = None
        self._resized, self._resizer = os.pipe()
        os.set_blocking(self._resizer, False)
        self._follower: subprocess.Popen | None = None
        self.turn_to(exercise)

    def turn_to(self, exercise: Any) -> None:
        """Go on with another exercise."""
        self._leave()
        self.exercise, self.record, self.hints = exercise, None, 0
        self.judge = Judge(self.course, exercise)
        self._follower = subprocess.Popen(
            [sys.executable, "-m", "llmkata.watch.follow", str(exercise.stub), "poll" if self.poll_files else "notify"],
            stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)

    def _leave(self) -> None:
        if self._follower is not None:
            self.judge.stop()
            self._follower.kill()
            self._follower.wait()
            self._follower.stdout.close()

    def run(self) -> None:
        """Until ``q``, Ctrl-C, or (without a terminal) the end of the process."""
        previous = signal.signal(signal.SIGWINCH, self._on_resize) if hasattr(signal, "SIGWINCH") else None
        try:
            with keys() as key_fd:
                self._draw()
                self._judge()
                while not self.over:
                    self._step(key_fd)
        except KeyboardInterrupt:
            pass
        finally:
            self._leave()
            if previous is not None:
                signal.signal(signal.SIGWINCH, previous)

    def _step(self, key_fd: int | None) -> None:
        saves = self._follower.stdout.fileno()
        watched = [self._resized, saves] + ([key_fd] if key_fd is not None else [])
        watched += [self.judge] if self.judge.running else []
        timeout = self.judge.seconds_left() + 0.1 if self.judge.running else None
        ready, _, _ = select.select(watched, [], [], timeout)
        if self.judge.running and (self.judge in ready or self.judge.seconds_left() <= 0):
            record = self.judge.poll()
            if record is not None:
                self._take(record)
            elif (early := self.judge.so_far()) and first_failure(early) != self._early:
                self._early = first_failure(early)
                self._draw()
        if saves in ready:
            if not os.read(saves, 4096):
                raise RuntimeError("the process that watches for saves ended; try kata watch --poll")
            self.note = ""
            self._judge()
        if self._resized in ready:
            os.read(self._resized, 4096)
            self._draw()
        if key_fd is not None and key_fd in ready:
            self.press(read_key(key_fd))

    def press(self, key: str) -> None:
        """What a key does."""
        action = self.actions.get(key)
        if action is None:
            return
        self.note = "checking..." if key == "c" else ""
        if self.note:
            self._draw()
        exercise = self.exercise
        self.note = action(self) or ""
        if self.over:
            return
        if self.exercise is not exercise:
            self._judge()
        self._draw()

    def _judge(self) -> None:
        self._early = None
        self.judge.start()
        self._draw()

    def _on_resize(self, *_: object) -> None:
        try:
            os.write(self._resizer, b"w")
        except BlockingIOError:  # redraws are due anyway
            pass

    def _take(self, record: ExerciseRecord) -> None:
        before = first_failure(self.record) if self.record is not None else None
        after = first_failure(record)
        if before is None or after is None or before.id != after.id:
            self.hints = 0
        self.record = record
        self.on_record(record)
        self._draw()

    def failing(self) -> CheckRecord | None:
        """The check on the screen."""
        return self._early or (first_failure(self.record) if self.record is not None else None)

    def _draw(self) -> None:
        busy = self.judge.running or self.record is None
        record = self.judge.so_far() if busy and self._early is not None else self.record
        shown = screen(self.course, self.exercise, record, hints=self.hints, note=self.note, busy=busy,
                       path=str(self.exercise.stub), width=self.console.width)
        if self.interactive:
            self.console.clear()
            self.console.print(shown)
        elif not busy or self.record is None:
            self.console.print(shown)
