"""Signs of life: each rank writes what it last did, and a thread of each rank looks at the others.

A rank that is killed, stopped or stuck leaves the others waiting in a collective that no Python exception ends.
The thread does: it names the rank and the step it reached, and ends its own process.  Files
``heartbeats/rank-N.json`` of the run folder carry the signs; ranks that do not share that folder are not judged.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..processes.endings import STOPPED_NAME, RankLostError, say

logger = logging.getLogger(__name__)
FOLDER_NAME = "heartbeats"
FINISHED = "finished"
LOST = "another rank was lost"
MOST_SECONDS_BETWEEN_BEATS = 5.0
# A killed peer often ends this rank's collective with an exception: that way is left to come first.
SECONDS_FOR_THE_EXCEPTION = 3.0


@dataclass(frozen=True)
class Beat:
    """What a rank says of itself.

    Args:
        start: which start of the run it belongs to: a network file system may show an old file for a while.
        step: optimizer steps taken.
        doing: in words, after ``step``.
        num_marks: places passed since the start; the rank behind the others is the one they wait for.
        num_beats: grows while the process runs, whatever its main thread does.
        inside: file and function that its main thread was in.
        ended: why the rank left the run, None while it is in it.
    """

    start: int
    rank: int
    host: str
    pid: int
    step: int = 0
    doing: str = "starting"
    num_marks: int = 0
    num_beats: int = 0
    inside: str = ""
    ended: str | None = None

    def words(self) -> str:
        return f"rank {self.rank} ({self.host}, pid {self.pid})"

    def place(self) -> str:
        return f"its last sign was after step {self.step}, {self.where()}"

    def where(self) -> str:
        return f"{self.doing} (in {self.inside})" if self.inside else self.doing


class Heartbeat:
    """The signs of this rank, and the thread that writes them and watches the others.

    Args:
        timeout_seconds: this rank may stay at one place for so long.
    """

    def __init__(
        self, output_dir: Path, rank: int, num_ranks: int, timeout_seconds: float, start: int = 0
    ) -> None:
        self.output_dir, self.timeout_seconds = output_dir, timeout_seconds
        self.num_ranks, self.mine = num_ranks, Beat(start, rank, socket.gethostname(), os.getpid())
        self.interval = min(MOST_SECONDS_BETWEEN_BEATS, timeout_seconds / 10)
        self._marked_at = time.monotonic()
        self._heard: dict[int, tuple[int, float]] = {}  # rank -> its num_beats, and when it last changed
        self._stop = threading.Event()
        self._writing, self._saying = threading.Lock(), threading.Lock()
        self._is_told = False
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._write()
        self._thread.start()

    def mark(self, step: int, doing: str) -> None:
        """Called by the main thread at each place; costs no input or output."""
        self.mine = replace(self.mine, step=step, doing=doing, num_marks=self.mine.num_marks + 1)
        self._marked_at = time.monotonic()

    def end(self, why: str) -> None:
        """This rank leaves the run; the others must not wait for it."""
        self._stop.set()
        self.mine = replace(self.mine, ended=why)
        self._write()

    def lost(self) -> str | None:
        """The first rank that is surely gone, in words; asks the files and, on this host, the processes.

        One that left because of another is named only where nothing is known of that other.
        """
        gone = [(beat.ended == LOST, words) for beat in self._others() if (words := self._loss(beat))]
        return min(gone, key=lambda each: each[0])[1] if gone else None

    def _loss(self, beat: Beat) -> str | None:
        if beat.ended == FINISHED:
            return None  # rank 0 may still be sealing the last checkpoint
        if beat.ended is not None:
            return f"{beat.words()} ended: {beat.ended}"
        return f"{beat.words()} died; {beat.place()}" if self._was_killed(beat) else None

    def _was_killed(self, beat: Beat) -> bool:
        return beat.host == self.mine.host and _is_gone(beat.pid)

    def await_loss(self, seconds: float) -> str | None:
        """As :meth:`lost`, given time for a dying rank to be dead."""
        until = time.monotonic() + seconds
        while (lost := self.lost()) is None and time.monotonic() < until:
            time.sleep(0.1)
        return lost

    def is_speaker(self) -> bool:
        """One of the ranks that are left says what happened: the lowest."""
        return not any(beat.rank < self.mine.rank and self._lives(beat) for beat in self._others())

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._stop.wait(self.interval):
            late = time.monotonic() - looked > 3 * self.interval
            looked = time.monotonic()
            if late:  # this process was suspended and goes on: nobody waited
                self._marked_at = looked
            self.mine = replace(self.mine, num_beats=self.mine.num_beats + 1, inside=place_of_main_thread())
            self._write()
            waited = time.monotonic() - self._marked_at
            reason = None
            if waited > self.timeout_seconds:
                reason = self._stalled(waited)
            elif waited > SECONDS_FOR_THE_EXCEPTION:
                reason = self.lost()
            if reason is not None and not self._stop.is_set():
                self._end_process(reason)

    def _stalled(self, waited: float) -> str:
        """Whom this rank has waited for since ``waited`` seconds."""
        limit = f"(stall_timeout_seconds {self.timeout_seconds:g})"
        if (lost := self.lost()) is not None:
            return lost
        others = self._others()
        silent = [beat for beat in others if not self._lives(beat)]
        behind = [beat for beat in others if beat.num_marks < self.mine.num_marks]
        if silent:
            return f"{silent[0].words()} gave no sign for {waited:.0f} s {limit}; {silent[0].place()}"
        if behind:
            last = min(behind, key=lambda beat: beat.num_marks)
            return f"{last.words()} is stuck, the others waited {waited:.0f} s for it {limit}; {last.place()}"
        if any(beat.num_marks > self.mine.num_marks for beat in others):
            return f"{self.mine.words()} is stuck since {waited:.0f} s {limit}; {self.mine.place()}"
        places = ", ".join(f"rank {beat.rank} {beat.where()}" for beat in (self.mine, *others))
        nobody = f"no rank made progress for {waited:.0f} s {limit}, none is behind"
        return f"{nobody}: after step {self.mine.step}, {places}"

    def rank_lost(self, reason: str) -> RankLostError:
        """The end of this rank, said once: by one of the ranks that are left, and by one of its two threads."""
        end = RankLostError(
            f"{self.output_dir}: {reason}; the run ended, start it again to go on", self.mine.step
        )
        with self._saying:
            if self.is_speaker() and not (self.output_dir / STOPPED_NAME).exists():
                say(self.output_dir, end)
        end.is_said = True
        return end

    def _end_process(self, reason: str) -> None:
        end = self.rank_lost(reason)
        if not self.is_speaker():
            time.sleep(2 * self.interval)  # the launcher ends the speaker too once this rank has ended
        self.end(LOST)
        os._exit(end.exit_code)  # the main thread waits in a collective that nothing ends

    def _others(self) -> list[Beat]:
        """The newest signs of the other ranks; those without a file are left out."""
        found = []
        for rank in range(self.num_ranks):
            beat = None if rank == self.mine.rank else read_beat(self.output_dir, rank)
            if beat is not None and beat.start == self.mine.start:
                if self._heard.get(rank, (-1, 0.0))[0] != beat.num_beats:
                    self._heard[rank] = beat.num_beats, time.monotonic()
                found.append(beat)
        return found

    def _lives(self, beat: Beat) -> bool:
        """Whether its thread was heard of lately; a clock of another machine is never read."""
        if beat.ended is not None or self._was_killed(beat):
            return False
        heard = self._heard.get(beat.rank, (0, 0.0))[1]
        return time.monotonic() - heard < max(4 * self.interval, self.timeout_seconds / 2)

    def _write(self) -> None:
        """Renamed into place; not flushed to disk, since a sign is worth nothing after a power cut."""
        with self._writing:
            path = beat_path(self.output_dir, self.mine.rank)
            temporary = path.with_suffix(".tmp")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary.write_text(json.dumps(asdict(self.mine)) + "\n")
                temporary.replace(path)
            except OSError as error:  # a full disk: the run says so itself, and the watch must go on
                if not self._is_told:
                    logger.warning("%s: no sign of life could be written (%s)", path, error.strerror)
                self._is_told = True


def beat_path(output_dir: Path, rank: int) -> Path:
    return output_dir / FOLDER_NAME / f"rank-{rank}.json"


def read_beat(output_dir: Path, rank: int) -> Beat | None:
    """A rank's newest sign, or None where it left none that can be read."""
    try:
        return Beat(**json.loads(beat_path(output_dir, rank).read_text()))
    except (OSError, ValueError, TypeError):
        return None  # not started, or on a machine that does not share the folder


def place_of_main_thread() -> str:
    """File and function, as in ``distributed.py:barrier``: where it waits, or what it is stuck in."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}" if frame else ""


def _is_gone(pid: int) -> bool:
    """Whether a process of this host has ended; one that its parent has not yet asked about counts as ended."""
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] == "Z"
    except ProcessLookupError:
        return True
    except OSError:
        return False  # another user's process, or a system without /proc: it is there
