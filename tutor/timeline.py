"""Record lanes and intervals: who was busy when, what waited for whom, how full a memory was.

A schedule: intervals are known beforehand, and a step is each moment at which one starts or ends.

>>> line = Timeline("demo", ["worker 0", "worker 1"], unit="tiles")
>>> left = line.interval(0, 0, 3, group=0)
>>> right = line.interval(1, 0, 2, kind="partial", group=0)
>>> line.arrow(right, left)
>>> line.finish().describe(1)
'At 2 of 3 tiles: 1 of 2 workers busy; 1 partial left for others; busy 100 % of the time so far.'

A memory: an interval is the stay of a buffer, a step is one move; `level` and `moved` are told with it.

>>> memory = Timeline("demo", ["Q", "K"], unit="moves", lane_word="buffer", capacity=64)
>>> memory.move("loaded", "Q", 16, level=16, moved=16)
>>> memory.move("loaded", "K", 32, label="K0", level=48, moved=48)
>>> memory.move("freed", "K", level=16, moved=48)
>>> memory.finish().describe(1)
'Step 2 of 3: load K0 (32 words); 48 of 64 words in fast memory, 48 words moved.'
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tutor.schemas import INTERVALS
from tutor.trace import Recorder, Trace

KINDS = tuple(INTERVALS)


class Timeline:
    """Collects intervals and moments for a trace of schema "timeline/1" (tutor/schemas.py says what it holds).

    Args:
        method: catalog name of what is drawn.
        lanes: names of the rows, from top to bottom.
        unit: of time, in the plural: "tiles", "ms", "moves".
        subject: `groups`, `group_word`, `capacity`, `level_label`, `mark`, `arrow`, `colour` … of the schema.
    """

    def __init__(self, method: str, lanes: Sequence[str], *, unit: str, lane_word: str = "worker",
                 params: dict | None = None, **subject):
        if not lanes:
            raise ValueError("lanes must name at least one row; got none")
        self.lanes = list(lanes)
        self._recorder = Recorder("timeline/1", method=method, params=params,
                                  subject={"lanes": self.lanes, "unit": unit, "lane_word": lane_word, **subject})
        self._rows: list[list] = []                      # lane, start, end, kind, group, marked
        self._labels: list[str] = []
        self._arrows: list[tuple[int, int]] = []
        self._moments: list[tuple] = []                  # level, moved of each move
        self._open: dict[int, int] = {}                  # lane -> interval that has not ended

    def interval(self, lane: int | str, start: float, end: float, kind: str = "work", *, label: str = "", group: int = -1,
                 marked: bool = False) -> int:
        """Add one; its number is what `arrow` takes."""
        if kind not in INTERVALS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
        if end < start:
            raise ValueError(f"an interval must end after it starts; got [{start}, {end})")
        self._rows.append([self._lane(lane), start, end, KINDS.index(kind), group, marked])
        self._labels.append(label)
        return len(self._rows) - 1

    def arrow(self, source: int, target: int) -> None:
        """Interval `source` hands its result to interval `target`."""
        for name, i in (("source", source), ("target", target)):
            if not 0 <= i < len(self._rows):
                raise ValueError(f"{name} must be an interval in [0, {len(self._rows)}); got {i}")
        self._arrows.append((source, target))

    def move(self, event: str, lane: int | str, words: int = 0, *, level: float, moved: float, label: str = "",
             kind: str = "held", group: int = -1) -> None:
        """One step of a memory: "loaded" or "made" begins a stay in the lane, "freed" ends it, "stored" does neither."""
        lane, now = self._lane(lane), len(self._moments)
        if event in ("loaded", "made"):
            if lane in self._open:
                raise ValueError(f"lane {self.lanes[lane]!r} is still held; tell 'freed' first")
            self._open[lane] = self.interval(lane, now, now, kind, label=label, group=group)
        elif lane not in self._open:
            raise ValueError(f"lane {self.lanes[lane]!r} holds nothing; tell 'loaded' or 'made' first")
        at = self._open[lane]
        self._recorder.event(event, lane=lane, interval=at, words=int(words))
        self._recorder.next_step()
        self._moments.append((level, moved))
        if event == "freed":
            self._rows[self._open.pop(lane)][2] = now

    def finish(self) -> Trace:
        """The trace; buffers that were never freed stay to the end. `ValueError` when nothing was recorded."""
        if not self._rows:
            raise ValueError("a timeline needs at least one interval; record one before finish()")
        for at in self._open.values():
            self._rows[at][2] = len(self._moments)
        lane, start, end, kind, group, marked = (np.array(column) for column in zip(*self._rows))
        start, end = start.astype(np.float32), end.astype(np.float32)
        arrays = {"lane": lane.astype(np.int32), "start": start, "end": end, "kind": kind.astype(np.int16),
                  "group": group.astype(np.int32)}
        if self._moments:
            level, moved = np.array(self._moments, np.float32).T
            arrays |= {"time": np.arange(len(level), dtype=np.float32), "level": level, "moved": moved}
        else:
            arrays["time"] = self._tell(arrays["lane"], start, end)
        if marked.any():
            arrays["marked"] = marked.astype(np.uint8)
        if self._arrows:
            arrays["arrows"] = np.array(self._arrows, np.int32)
        if any(self._labels):
            self._recorder.subject["labels"] = self._labels
        return self._recorder.finish(**arrays)

    def _tell(self, lane: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Events of a schedule, moment by moment; the moments."""
        times = np.unique(np.concatenate([[0], start, end]).astype(np.float32))
        for time in times:
            for event, when in (("ended", end), ("started", start)):
                mine = np.flatnonzero(when == time)
                self._recorder.events(event, lane=lane[mine], interval=mine, words=np.zeros(len(mine), int))
            self._recorder.next_step()
        return times

    def _lane(self, lane: int | str) -> int:
        if isinstance(lane, str):
            if lane not in self.lanes:
                raise ValueError(f"lane must be one of {', '.join(self.lanes)}; got {lane!r}")
            return self.lanes.index(lane)
        if not 0 <= lane < len(self.lanes):
            raise ValueError(f"lane must be in [0, {len(self.lanes)}); got {lane}")
        return int(lane)
