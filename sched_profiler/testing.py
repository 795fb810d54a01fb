"""Help for tests of engines and sinks that use this package."""

from __future__ import annotations

import copy
import sys
import threading
from typing import TYPE_CHECKING, Any

import attrs

from sched_profiler.record import SCHEMA_VERSION, BatchRecord, chunk_statistics
from sched_profiler.sinks.base import Sink

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

__all__ = ["FakeClock", "SinkContract", "make_record"]


class FakeClock:
    """A clock that moves only when told to, so that every duration in a test is exact."""

    def __init__(self, unix_time_s: float = 1_700_000_000.0) -> None:
        """Start at the Unix time `unix_time_s`."""
        self._monotonic_ns = 0
        self._epoch_ns = round(unix_time_s * 1e9)

    def monotonic_ns(self) -> int:
        """Return the nanoseconds that the clock was moved by."""
        return self._monotonic_ns

    def time_ns(self) -> int:
        """Return the Unix time in nanoseconds."""
        return self._epoch_ns + self._monotonic_ns

    def advance(self, milliseconds: float) -> None:
        """Let time pass."""
        self._monotonic_ns += round(milliseconds * 1e6)

    def step_wall_clock(self, milliseconds: float) -> None:
        """Set the wall clock forward, or back, as an administrator or NTP does."""
        self._epoch_ns += round(milliseconds * 1e6)


def make_record(
    batch_id: int = 0,
    *,
    prefill: Sequence[int] = (64,),
    decode: Sequence[int] = (1, 1),
    **fields: Any,
) -> BatchRecord:
    """Return a record of a batch with these chunks, in tokens; `fields` are further record fields.

    What follows from the chunks is filled in; optional fields are left out unless given.
    """
    average, largest, smallest = chunk_statistics(prefill)
    defaults: dict[str, Any] = {
        "timestamp": 1_700_000_000.0 + batch_id / 100,
        "schedule_duration_ms": 0.5,
        "model_run_duration_ms": 9.5,
        "total_step_duration_ms": 10.0,
        "num_prefill_reqs": len(prefill),
        "num_decode_reqs": len(decode),
        "total_scheduled_tokens": sum(prefill) + sum(decode),
        "prefill_chunk_sizes": list(prefill),
        "decode_chunk_sizes": list(decode),
        "avg_prefill_chunk_size": average,
        "max_prefill_chunk_size": largest,
        "min_prefill_chunk_size": smallest,
        "avg_decode_chunk_size": chunk_statistics(decode)[0],
        "num_waiting_reqs": 4,
        "num_running_reqs": len(prefill) + len(decode),
        "kv_cache_usage": 0.25,
    }
    return BatchRecord(batch_id=batch_id, **(defaults | fields))


class SinkContract:
    """What every sink must do: subclass it in your own tests, and pytest checks your sink.

        class TestMySink(SinkContract):
            def make_sink(self):
                return MySink(...)

            def arrived(self):
                return ...

    Each test makes a sink of its own, and asks for what arrived when it has closed that sink.

    Attributes:
        arrives_at_flush: whether records have arrived when `flush` returns. Set it to False for a
            sink that sends at its own pace; then they must have arrived when `close` returns.
    """

    arrives_at_flush: bool = True

    def make_sink(self) -> Sink:
        """Return a new sink; what an earlier one left must not count as having arrived."""
        raise NotImplementedError

    def arrived(self) -> list[BatchRecord] | int:
        """Return the records that the last sink made brought home, in their order.

        For a sink that does not keep every record, such as one of metrics, return how many records
        it took in.
        """
        raise NotImplementedError

    def test_it_has_the_methods_of_a_sink(self) -> None:
        """`write`, `flush` and `close`."""
        assert isinstance(self.make_sink(), Sink)

    def test_it_does_nothing_before_the_first_write(self) -> None:
        """No file, no connection, no thread: it may be made where it is never used."""
        self.make_sink()  # once before, so that what is imported is no longer new
        threads = set(threading.enumerate())
        with _Watch() as watch:
            sink = self.make_sink()
            sink.flush()
        assert not watch.seen, f"made and flushed, not yet written to, it did {watch.seen}"
        new = [thread.name for thread in threading.enumerate() if thread not in threads]
        assert not new, f"made, not yet written to, it started {new}"

    def test_it_may_be_closed_without_a_write(self) -> None:
        """An engine that never served."""
        self.make_sink().close()
        self._check_arrived([])

    def test_what_is_written_has_arrived_after_the_close(self) -> None:
        """In order, and as it was."""
        self._check_round_trip([make_record(number) for number in range(3)])

    def test_what_is_flushed_has_arrived(self) -> None:
        """The process may end at any time, without a close."""
        sink = self.make_sink()
        records = [make_record(number) for number in range(4)]
        for record in records[:2]:
            sink.write(record)
        sink.flush()
        sink.flush()
        if self.arrives_at_flush:
            self._check_arrived(records[:2])
        for record in records[2:]:
            sink.write(record)
        sink.flush()
        if self.arrives_at_flush:
            self._check_arrived(records)
        sink.close()
        self._check_arrived(records)

    def test_it_may_be_closed_twice(self) -> None:
        """A context manager and an exit hook may both do it."""
        sink = self.make_sink()
        sink.write(make_record())
        sink.close()
        sink.close()
        self._check_arrived([make_record()])

    def test_it_goes_on_after_a_close_in_a_hurry(self) -> None:
        """At a signal a sink is closed at once, and the engine may go on all the same."""
        sink = self.make_sink()
        records = [make_record(number) for number in range(2)]
        for record in records:
            sink.write(record)
            sink.close()
        self._check_arrived(records)

    def test_it_takes_every_optional_field(self) -> None:
        """As vLLM's adapter fills them."""
        values: dict[Any, Any] = {
            int | None: 7,
            float | None: 1.25,
            str | None: "né",
            list[str] | None: ["a", "b"],
        }
        optional: dict[str, Any] = {
            field.name: values[field.type]
            for field in attrs.fields(BatchRecord)
            if field.default is None
        }
        optional["schema_version"] = SCHEMA_VERSION
        self._check_round_trip([make_record(**optional)])

    def test_it_takes_every_null(self) -> None:
        """A batch without a prefill, one without a decode, one without a result."""
        self._check_round_trip(
            [
                make_record(0, prefill=()),
                make_record(1, decode=()),
                make_record(2, model_run_duration_ms=None, total_step_duration_ms=None),
            ]
        )

    def test_it_takes_a_large_record(self) -> None:
        """A thousand requests in one batch."""
        self._check_round_trip([make_record(decode=[1] * 1000)])

    def test_it_takes_many_records(self) -> None:
        """More than any buffer is likely to hold."""
        records = [make_record(number) for number in range(5000)]
        sink = self.make_sink()
        for record in records:
            sink.write(record)
            if record.batch_id % 100 == 0:
                sink.flush()
        sink.close()
        self._check_arrived(records)

    def test_it_is_used_from_a_thread_that_did_not_make_it(self) -> None:
        """The background writer's."""
        sink = self.make_sink()
        failures: list[BaseException] = []

        def use() -> None:
            try:
                sink.write(make_record())
                sink.flush()
                sink.close()
            except BaseException as error:  # noqa: BLE001 - told on the test's own thread
                failures.append(error)

        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        assert not failures, f"on another thread it raised {failures[0]!r}"
        self._check_arrived([make_record()])

    def test_it_leaves_records_as_they_are(self) -> None:
        """The sinks after it get the same ones."""
        sink = self.make_sink()
        record = make_record(request_ids=["a", "b", "c"])
        before = copy.deepcopy(record)
        sink.write(record)
        sink.close()
        assert record == before, "the record was changed"

    def _check_round_trip(self, records: list[BatchRecord]) -> None:
        sink = self.make_sink()
        for record in records:
            sink.write(record)
        sink.close()
        self._check_arrived(records)

    def _check_arrived(self, records: list[BatchRecord]) -> None:
        arrived = self.arrived()
        number = arrived if isinstance(arrived, int) else len(arrived)
        assert number == len(records), f"{len(records)} records were written, {number} arrived"
        if isinstance(arrived, int):
            return
        for written, read in zip(records, arrived, strict=True):
            assert read == written, f"{written} was written, {read} arrived"


class _Watch:
    """Notes what this thread does to files, the network and processes while it is entered."""

    _EVENTS = (
        "os.mkdir",
        "os.remove",
        "os.rename",
        "os.posix_spawn",
        "socket.bind",
        "socket.connect",
        "socket.getaddrinfo",
        "sqlite3.connect",
        "subprocess.Popen",
    )
    _active: dict[int, _Watch] = {}  # noqa: RUF012 - by thread; shared, as the hook is
    _hooked = False

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __enter__(self) -> Self:
        if not _Watch._hooked:
            # A hook cannot be taken back; outside of a watch it does one look-up.
            _Watch._hooked = True
            sys.addaudithook(_Watch._audit)
        _Watch._active[threading.get_ident()] = self
        return self

    def __exit__(self, *_: object) -> None:
        del _Watch._active[threading.get_ident()]

    @staticmethod
    def _audit(event: str, arguments: tuple[Any, ...]) -> None:
        watch = _Watch._active.get(threading.get_ident()) if _Watch._active else None
        if watch is not None and (event in _Watch._EVENTS or event == "open"):
            watch.seen.append(f"{event} {arguments[0]!r}" if arguments else event)
