"""What the records of the last seconds come down to: rates, percentiles, series, slow batches.

A window is cut into 60 slices, each of which holds counts. So it takes the same memory for any rate
of records, and adding one takes the same time. Percentiles are within 0.5 % of the exact ones.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from sched_profiler.clock import SYSTEM_CLOCK, Clock
from sched_profiler.errors import RecordError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sched_profiler.record import BatchRecord

__all__ = [
    "DURATIONS",
    "NUM_SLICES",
    "Lane",
    "Value",
    "Window",
    "budget_share",
    "idle_share",
    "per_batch",
    "per_second",
]

NUM_SLICES = 60
"""How many slices a window has."""

DURATIONS = ("schedule_duration_ms", "model_run_duration_ms", "total_step_duration_ms")
"""The times of a batch of which there are percentiles."""

_GROWTH = math.log(1.01)
_LAG_S = 0.5
"""How late a record may be: a step, the writer and whoever reads take their time."""
_MOST_LANES = 256
_KEPT_SLOW = 8
_AHEAD_S = 86_400.0
"""A record that is so far ahead of the clock would push all others out."""
_LONGEST_MS = 1e10
"""A step that takes longer, likewise."""


def _bin(ms: float) -> int:
    return int(math.log(ms * 1e3) / _GROWTH) if ms >= 1e-3 else -1  # noqa: PLR2004 - 1 µs


def _middle(number: int) -> float:
    return math.exp((number + 0.5) * _GROWTH) / 1e3 if number >= 0 else 0.0


class _Batches:
    """Counts of some batches."""

    def __init__(self) -> None:
        self.sums: Counter[str] = Counter()
        self.histograms: dict[str, Counter[int]] = {name: Counter() for name in DURATIONS}

    def add(self, sums: dict[str, int], bins: dict[str, int]) -> None:
        for name, number in sums.items():
            self.sums[name] += number
        for name, number in bins.items():
            self.histograms[name][number] += 1

    def remove(self, other: _Batches) -> None:
        self.sums.subtract(other.sums)
        for name, histogram in self.histograms.items():
            for number, count in other.histograms[name].items():
                histogram[number] -= count
                if not histogram[number]:
                    del histogram[number]


class _Slice(_Batches):
    """Counts of the batches that began in one slice of time, and the slowest of them."""

    def __init__(self) -> None:
        super().__init__()
        self._slow: list[tuple[float, int, BatchRecord]] = []
        self._num_seen = 0

    def offer(self, record: BatchRecord) -> None:
        """Keep a batch if it is one of the slowest."""
        self._num_seen += 1  # so that records are never compared
        entry = (_step_ms(record), self._num_seen, record)
        if len(self._slow) < _KEPT_SLOW:
            heapq.heappush(self._slow, entry)
        elif entry > self._slow[0]:
            heapq.heapreplace(self._slow, entry)

    @property
    def slow(self) -> list[BatchRecord]:
        """The slowest batches, in no order."""
        return [record for _, _, record in self._slow]


def _step_ms(record: BatchRecord) -> float:
    total = record.total_step_duration_ms
    return record.schedule_duration_ms if total is None else total


def _sums(record: BatchRecord) -> dict[str, int]:
    """Return what is added up over batches; times in whole µs, so that nothing is rounded twice."""
    sums = {
        "num_batches": 1,
        "prefill_tokens": sum(record.prefill_chunk_sizes),
        "decode_tokens": sum(record.decode_chunk_sizes),
        "num_waiting_reqs": record.num_waiting_reqs,
        "num_running_reqs": record.num_running_reqs,
        "kv_cache_ppm": round(record.kv_cache_usage * 1e6),
    }
    for name in ("num_new_reqs", "num_finished_reqs", "num_preempted_reqs"):
        value = getattr(record, name)
        if value is not None:
            sums[name] = value
            sums[f"knows_{name}"] = 1
    if record.token_budget:
        sums["budgeted_tokens"] = record.total_scheduled_tokens
        sums["token_budget"] = record.token_budget
    for name in DURATIONS:
        value = getattr(record, name)
        if value is not None:
            sums[name] = round(value * 1e3)
            sums[f"knows_{name}"] = 1
    return sums


Value = Callable[["Counter[str]", float], "float | None"]
"""What counts over so many seconds amount to; None where unknown."""


def per_second(name: str) -> Value:
    """Return how many of a thing there are in a second; unknown where no record tells."""
    known = f"knows_{name}" if name.endswith("_reqs") else None

    def value(sums: Counter[str], seconds: float) -> float | None:
        if known is not None and sums["num_batches"] and not sums[known]:
            return None
        return sums[name] / seconds

    return value


def per_batch(name: str, factor: float = 1.0) -> Value:
    """Return the mean over batches, times a factor."""
    known = f"knows_{name}" if name in DURATIONS else "num_batches"

    def value(sums: Counter[str], _: float) -> float | None:
        return factor * sums[name] / sums[known] if sums[known] else None

    return value


def idle_share(num_engines: int) -> Value:
    """Return the share of the time in which the model did not run, of that many engines."""

    def value(sums: Counter[str], seconds: float) -> float | None:
        if sums["num_batches"] and not sums["knows_model_run_duration_ms"]:
            return None
        busy_s = sums["model_run_duration_ms"] / 1e6
        return max(0.0, 1 - busy_s / (seconds * num_engines))

    return value


def budget_share(sums: Counter[str], _: float) -> float | None:
    """Return the share of the token budget that batches use."""
    return sums["budgeted_tokens"] / sums["token_budget"] if sums["token_budget"] else None


class Lane:
    """The batches of one engine, or of all of them together, within the window.

    Attributes:
        run_id: of the engine; None for all together, and in a log of the original feature.
        dp_rank: of the engine; None where unknown.
        newest: the record with the latest timestamp.
        num_missing: batches without a record between the first one seen and the last.
        num_dropped: records that the engine says it could not write.
    """

    def __init__(self, width_s: float) -> None:
        """Hold no batch yet; a slice takes `width_s` seconds."""
        self.run_id: str | None = None
        self.dp_rank: int | None = None
        self.newest: BatchRecord | None = None
        self.num_missing = 0
        self.num_dropped = 0
        self._width_s = width_s
        self._slices: dict[int, _Slice] = {}
        self._all = _Batches()
        self._begin = math.inf
        self._end = 0.0
        self._first_slice = self._last_slice = 0
        self._first_id = self._last_id = self._num_ids = 0

    def add(self, record: BatchRecord, sums: dict[str, int], bins: dict[str, int]) -> None:
        """Add a batch that is in the window."""
        number = math.floor(record.timestamp / self._width_s)
        one = self._slices.get(number)
        if one is None:
            one = self._slices[number] = _Slice()
        one.add(sums, bins)
        one.offer(record)
        self._all.add(sums, bins)

    def see(self, record: BatchRecord) -> None:
        """Take note of when a batch was, also of one that is older than the window."""
        self._begin = min(self._begin, record.timestamp)
        if self.newest is None or record.timestamp >= self.newest.timestamp:
            self.newest = record

    def account(self, record: BatchRecord) -> None:
        """Keep account of what is missing of an engine."""
        number = record.batch_id
        if not self._num_ids or (record.run_id is None and number == 0):
            # Without run_id, each start of the engine begins at 0.
            self._first_id = self._last_id = number
            self._num_ids = 0
        self._num_ids += 1
        self._first_id = min(self._first_id, number)
        self._last_id = max(self._last_id, number)
        self.num_missing = max(0, self._last_id - self._first_id + 1 - self._num_ids)
        self.num_dropped = max(self.num_dropped, record.num_dropped_records or 0)

    def settle(self, end: float) -> None:
        """Let go of what is older than the window, which ends at the Unix time `end`."""
        self._last_slice = math.floor((end - _LAG_S) / self._width_s) - 1
        self._first_slice = self._last_slice - NUM_SLICES + 1
        for number in [number for number in self._slices if number < self._first_slice]:
            self._all.remove(self._slices.pop(number))
        self._end = end

    @property
    def num_batches(self) -> int:
        """Batches in the window."""
        return self._all.sums["num_batches"]

    @property
    def span_s(self) -> float:
        """Seconds that the window spans: fewer than asked for where the run began within it."""
        return max(0.0, self._end - max(self._first_slice * self._width_s, self._begin))

    def mean(self, value: Value) -> float | None:
        """Return a value of the whole window."""
        return value(self._all.sums, self.span_s) if self.span_s else None

    def recent(self, value: Value) -> float | None:
        """Return a value of the last second, or of two slices where that is more."""
        count = max(2, math.ceil(1 / self._width_s))
        sums: Counter[str] = Counter()
        for number in range(self._last_slice - count + 1, self._last_slice + 1):
            if number in self._slices:
                sums.update(self._slices[number].sums)
        return value(sums, min(count * self._width_s, self.span_s)) if self.span_s else None

    def series(self, value: Value) -> list[float | None]:
        """Return a value of each slice, oldest first."""
        nothing: Counter[str] = Counter()
        return [
            value(self._slices[number].sums if number in self._slices else nothing, self._width_s)
            if (number + 1) * self._width_s > self._begin
            else None
            for number in range(self._first_slice, self._last_slice + 1)
        ]

    def percentiles(self, name: str, shares: Sequence[float]) -> list[float] | None:
        """Return percentiles of a time, in ms; None where there is none."""
        histogram = self._all.histograms[name]
        total = histogram.total()
        if not total:
            return None
        found: list[float] = []
        numbers = iter(sorted(histogram.items()))
        number, seen = 0, 0
        for share in sorted(shares):
            while seen <= share * (total - 1):
                number, count = next(numbers)
                seen += count
            found.append(_middle(number))
        return found

    def slow(self, count: int) -> list[BatchRecord]:
        """Return the batches with the longest steps, the longest first: at most 8."""
        records = [record for one in self._slices.values() for record in one.slow]
        return heapq.nlargest(min(count, _KEPT_SLOW), records, key=_step_ms)


class Window:
    """The batches of the last seconds, of all engines.

    It ends now, or with the newest record if it does not slide: so a log that ended long ago shows
    its end. "Now" is how long ago the newest record came, after the end of its batch: the clocks of
    two machines need not agree.

    Attributes:
        seconds: how long it is.
        slides: whether it goes on while no record comes.
        has_caught_up: whether all that was there at first was added.
        lanes: the engines, by run and rank.
        everything: all engines together.
        end: Unix time of its end, as of the last `settle`.
        num_refused: records that can stand nowhere in it, such as those from the future.
    """

    def __init__(
        self, seconds: float, *, is_prompt: bool = True, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        """Hold no batch yet.

        Args:
            seconds: how long it is.
            is_prompt: whether records come when they are made; not where many are uploaded at once.
            clock: the source of all times.
        """
        self.seconds = seconds
        self.slides = False
        self._is_prompt = is_prompt
        self.has_caught_up = False
        self.end = 0.0
        self.num_refused = 0
        self.lanes: dict[tuple[str | None, int | None], Lane] = {}
        self.everything = self._lane()
        self._num_missing_before = 0
        self._num_dropped_before = 0
        self._clock = clock
        self._newest_end = -math.inf
        self._newest_ns = 0

    def add(self, record: BatchRecord) -> None:
        """Add a record."""
        if not self._can_stand(record):
            self.num_refused += 1
            return
        key = record.run_id, record.dp_rank
        lane = self.lanes.get(key)
        if lane is None:
            self._make_room()
            lane = self.lanes[key] = self._lane()
            lane.run_id, lane.dp_rank = key
        self.slides = self._is_prompt and self.has_caught_up
        for one in (lane, self.everything):
            one.see(record)
        lane.account(record)
        end = record.timestamp + _step_ms(record) / 1e3
        if end > self._newest_end:
            self._newest_end, self._newest_ns = end, self._clock.monotonic_ns()
        # What is kept in vain goes when the window is looked at next.
        if record.timestamp < self._newest_end - 2 * self.seconds:
            return
        sums = _sums(record)
        bins = {
            name: _bin(value) for name in DURATIONS if (value := getattr(record, name)) is not None
        }
        for one in (lane, self.everything):
            one.add(record, sums, bins)

    def catch_up(self) -> None:
        """Take note that all that was there was added: it slides if that is not long ago."""
        self.has_caught_up = True
        age = self.age_s
        if age is not None and age <= self.seconds:
            self.slides = self._is_prompt
            self._newest_ns -= round(age * 1e9)

    @property
    def quiet_s(self) -> float | None:
        """Seconds since the newest record came; None before the first."""
        if math.isinf(self._newest_end):
            return None
        return (self._clock.monotonic_ns() - self._newest_ns) / 1e9

    @property
    def age_s(self) -> float | None:
        """How old the newest record is by the clock of this machine, in s; None before the first.

        A time that the clocks of two machines differ by is in it.
        """
        if math.isinf(self._newest_end):
            return None
        return max(0.0, self._clock.time_ns() / 1e9 - self._newest_end)

    def settle(self) -> None:
        """Let go of what is older than the window; to be called before anything is looked at."""
        quiet = self.quiet_s
        if quiet is None:
            return
        self.end = self._newest_end + (quiet if self.slides else 0.0)
        for lane in (self.everything, *self.lanes.values()):
            lane.settle(self.end)

    def shown_lanes(self) -> list[Lane]:
        """Return the engines with batches in the window, or the last one if there is none."""
        lanes = [lane for lane in self.lanes.values() if lane.num_batches]
        if not lanes and self.lanes:
            lanes = [max(self.lanes.values(), key=_last_seen)]
        return sorted(lanes, key=lambda lane: (lane.dp_rank or 0, -_last_seen(lane)))

    @property
    def num_missing(self) -> int:
        """Batches without a record, of all engines that were ever seen."""
        return self._num_missing_before + sum(lane.num_missing for lane in self.lanes.values())

    @property
    def num_dropped(self) -> int:
        """Records that engines say they could not write."""
        return self._num_dropped_before + sum(lane.num_dropped for lane in self.lanes.values())

    def _can_stand(self, record: BatchRecord) -> bool:
        try:
            record.check()
        except RecordError:
            return False
        longest = max(getattr(record, name) or 0.0 for name in DURATIONS)
        ahead = record.timestamp - self._clock.time_ns() / 1e9
        return ahead <= _AHEAD_S and longest <= _LONGEST_MS

    def _lane(self) -> Lane:
        return Lane(self.seconds / NUM_SLICES)

    def _make_room(self) -> None:
        """Forget the engine that was silent for longest, if there are too many."""
        if len(self.lanes) >= _MOST_LANES:
            key = min(self.lanes, key=lambda key: _last_seen(self.lanes[key]))
            lane = self.lanes.pop(key)
            self._num_missing_before += lane.num_missing
            self._num_dropped_before += lane.num_dropped


def _last_seen(lane: Lane) -> float:
    return lane.newest.timestamp if lane.newest else -math.inf
