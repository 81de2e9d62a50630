"""The loop itself: waits for a save, a key, a verdict or a new window size, and redraws. It never goes on by itself."""

from __future__ import annotations

import contextlib
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console

from llmkata.course.launcher import launcher
from llmkata.records import CheckRecord, ExerciseRecord, Outcome

from .judge import Judge, first_failure
from .keys import keys
from .screen import View, body, paint, progress

#: What each key does is answered by the caller: key -> text to show, or None for what the loop does itself.
Actions = dict[str, Callable[["Watch"], str | None]]

#: Seconds between two drawings that tell only how far a run is.
_BETWEEN = 0.2
#: The other screen of the terminal, without a cursor; what stood there before comes back at the end.
_ENTER, _LEAVE, _HOME = "\x1b[?1049h\x1b[?25l\x1b[2J", "\x1b[?25h\x1b[?1049l", "\x1b[H"


class Watch:
    """State of one ``kata watch``: the exercise, its last verdict, which hints are open."""

    def __init__(self, course: Any, exercise: Any, *, actions: Actions, console: Console, poll: bool = False,
                 on_record: Callable[[ExerciseRecord], None] = lambda r: None) -> None:
        self.course, self.console, self.poll_files = course, console, poll
        self.actions, self.on_record = actions, on_record
        self.interactive = sys.stdin.isatty() and console.is_terminal and not console.is_dumb_terminal
        self.over = False
        self.note = ""
        #: Asked by a key: called with the next key.
        self.asking: Callable[[str], str | None] | None = None
        self._events: queue.SimpleQueue = queue.SimpleQueue()
        #: The first failure of the run under way, as soon as it is known.
        self._early: CheckRecord | None = None
        self._follower: subprocess.Popen | None = None
        self._errand: subprocess.Popen | None = None
        self._size = self._window()
        self._drawn = 0.0
        self._turn(exercise)

    # -- what keys may do ------------------------------------------------------------------------------------------

    def turn_to(self, exercise: Any) -> None:
        """Go on with another exercise."""
        self._leave()
        self._turn(exercise)
        self._judge()

    def failing(self) -> CheckRecord | None:
        """The check on the screen."""
        return self._early or (first_failure(self.record) if self.record is not None else None)

    def errand(self, command: list[str], done: Callable[[bytes, bytes], None]) -> None:
        """Run a command beside the loop; ``done`` gets what it wrote to standard output and error, unless a save comes first."""
        self._end_errand()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   cwd=self.course.root, start_new_session=True)
        self._errand = process

        def wait() -> None:
            said = process.communicate()
            self._events.put(lambda: self._errand_over(process, said, done))

        threading.Thread(target=wait, daemon=True).start()

    def show(self, record: ExerciseRecord, scope: str) -> None:
        """Show a verdict that covers more than the visible checks."""
        self.record, self.scope = record, scope
        self.at = time.strftime("%H:%M:%S")

    # -- the loop --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until ``q``, Ctrl-C, or the end of the process."""
        # Told to end: leave as after Ctrl-C, so that the terminal is given back.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            with self._terminal():
                self._judge()
                while not self.over:
                    self._step()
        except KeyboardInterrupt:
            pass
        finally:
            self._leave()
        if self.interactive and self.record is not None:
            self.console.print(f"{self.exercise.number} {self.exercise.title}")
            self.console.print(progress(self.exercise, self.record, self.console.width))
            self.console.print(f"Go on with {launcher()} watch {self.exercise.id}; {launcher()} start shows all exercises.")

    def _step(self) -> None:
        wait = 1.0 if self.interactive else 60.0
        if self.judge.running:
            wait = min(wait, self.judge.seconds_left() + 0.05)
        try:
            event = self._events.get(timeout=wait)
        except queue.Empty:
            self._take(self.judge.overdue())
            if self.interactive and self._window() != self._size:  # where no signal tells
                self._resized()
            return
        if isinstance(event, tuple):
            record = self.judge.take(event)
            self._take(record)
            if record is None and self.judge.running:
                self._heard(first_failure(self.judge.so_far()))
        else:
            event()

    def _heard(self, early: CheckRecord | None) -> None:
        """Something of the run under way: a new failure is shown at once, how many passed now and then."""
        due = time.monotonic() - self._drawn > _BETWEEN or self.judge.slow_left()
        if early != self._early or due:
            self._early = early
            if self.interactive:
                self._draw()

    def press(self, key: str) -> None:
        """What a key does."""
        if self.asking is not None:
            answer, self.asking = self.asking, None
            self.note = answer(key) or ""
        elif key in self.actions:
            self.note = self.actions[key](self) or ""
        else:
            return
        if not self.over:
            self._draw()

    def _turn(self, exercise: Any) -> None:
        self.exercise, self.record, self.at, self.scope = exercise, None, "", "visible checks"
        #: Id of a check -> how many of its hints are open.
        self.opened: dict[str, int] = {}
        self.judge = Judge(exercise, self._events)
        self._follower = follower = subprocess.Popen(
            [sys.executable, "-m", "llmkata.watch.follow", "poll" if self.poll_files else "notify",
             str(exercise.stub), str(exercise.visible_checks)],
            stdout=subprocess.PIPE, stdin=subprocess.PIPE, start_new_session=True)

        def saves() -> None:
            while follower.stdout.read(1):
                self._events.put(lambda: self._saved(follower))
            self._events.put(lambda: self._deaf(follower))

        threading.Thread(target=saves, daemon=True).start()

    def _leave(self) -> None:
        self._end_errand()
        self.judge.close()
        self._follower.kill()
        self._follower.wait()

    def _saved(self, follower: subprocess.Popen) -> None:
        if follower is self._follower:
            self.note, self.asking = "", None
            self._end_errand()
            self._judge()

    def _deaf(self, follower: subprocess.Popen) -> None:
        if follower is self._follower:
            raise RuntimeError(f"the process that watches for saves ended; try {launcher()} watch --poll")

    def _end_errand(self) -> None:
        if self._errand is not None:
            self._errand.kill()
            self._errand = None

    def _errand_over(self, process: subprocess.Popen, said: tuple[bytes, bytes],
                     done: Callable[[bytes, bytes], None]) -> None:
        if process is self._errand:
            self._errand, self.note = None, ""
            done(*said)
            self._draw()

    def _judge(self) -> None:
        if self._early is not None:
            self.record = self.judge.so_far()  # what the screen tells until something is known of the file as it is now
        self._early = None
        self.judge.start()
        self._draw()

    def _take(self, record: ExerciseRecord | None) -> None:
        if record is None:
            return
        self._early = None
        self.show(record, "visible checks")
        self.on_record(record)
        self._draw()

    # -- the terminal ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _terminal(self) -> Iterator[None]:
        if not self.interactive:
            yield
            return
        with keys(lambda key: self._events.put(lambda: self.press(key))):
            tell = hasattr(signal, "SIGWINCH")
            previous = signal.signal(signal.SIGWINCH, lambda *_: self._events.put(self._resized)) if tell else None
            self._write(_ENTER)
            try:
                yield
            finally:
                self._write(_LEAVE)
                if tell:
                    signal.signal(signal.SIGWINCH, previous)

    def _resized(self) -> None:
        self._size = self._window()
        self._draw()

    @staticmethod
    def _window() -> tuple[int, int]:
        return tuple(shutil.get_terminal_size())

    def _draw(self) -> None:
        busy = self.judge.running
        record = self.judge.so_far() if busy and self._early is not None else self.record
        self._drawn = time.monotonic()
        failing = self.failing()
        view = View(self.exercise, record, busy, self.opened.get(failing.id, 0) if failing is not None else 0, self.note, self.scope, self.interactive,
                    so_far=sum(c.outcome is Outcome.passed for c in self.judge.so_far().checks) if busy else 0,
                    slow=self.judge.slow_left() if busy else 0,
                    printed=self.judge.printed.get(failing.id, "") if failing is not None else "", at=self.at)
        if self.interactive:
            self._write(_HOME + paint(view, self.console, self._size[1]) + "\x1b[J")
            return
        if busy:
            self.console.print(f"{self.exercise.number} {self.exercise.title}: checking...")
        else:
            for part in body(view):
                self.console.print(part)
            self.console.print(progress(self.exercise, self.record, self.console.width))
        self.console.file.flush()

    def _write(self, text: str) -> None:
        self.console.file.write(text)
        self.console.file.flush()
