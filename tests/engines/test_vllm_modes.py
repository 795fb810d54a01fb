"""Every mode of the real engine: each record is what an oracle inside vLLM's scheduler says.

All modes run with a model on vLLM's CPU build, some not without help:

- Asynchronous scheduling is switched off by the CPU platform; `offline.py` keeps it.
- Pipeline parallel needs an engine that compiles: the CPU worker makes room for what the stages
  hand on only as it warms up, and an eager one does not (`assert self.intermediate_tensors is not
  None` in its first batch). Two workers on one NUMA node need `VLLM_CPU_OMP_THREADS_BIND=nobind`.
- After n-gram speculation no engine starts in the same process: the CPU platform asks each object
  in each module for its `vars`, and those of one that numba brings are no dict.
- Of the backends for structured output xgrammar, guidance and outlines start; lm-format-enforcer
  imports a module that vLLM no longer has.

One does not run: data-parallel engines in lockstep, as vLLM runs mixture-of-experts models. They
start, and their first batch ends in a NotImplementedError, because the CPU has no kernel for
experts behind the exchange of tokens between ranks. vLLM's real scheduler stands in for it here.
Data-parallel engines of a dense model do not wait for each other, and run.
"""

from __future__ import annotations

import http.client
import json
import random
import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import jsonschema
import pytest
from real_vllm import ORACLE_MODES, Account, Run, check_times, read, read_accounts
from test_vllm_oracle import Engine
from tokenizers import Tokenizer
from vllm_server import Server, serve

from sched_profiler import BatchRecord, schema

# The first test of a fixture waits for all that it runs.
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


class Mode(NamedTuple):
    """What an engine in one mode left, beside what vLLM's outputs and the oracle say."""

    records: list[BatchRecord]
    told: list[dict[str, Any]]
    account: Account

    def sum(self, field: str) -> int:
        """Return the total of a field; it is known for every batch."""
        return sum(getattr(record, field) for record in self.records)


def mode_of(modes: Run, name: str) -> Mode:
    """Return what the engine of a scenario left."""
    assert len(modes.runs) == len(modes.accounts) == len(ORACLE_MODES)
    number = ORACLE_MODES.index(name)
    return Mode(modes.runs[number], modes.outputs[name], modes.accounts[number])


def phases(records: list[BatchRecord]) -> dict[str, str]:
    """Return the phases of each request, batch by batch, such as PPDDD."""
    found: dict[str, str] = {}
    for record in records:
        for number, req_id in enumerate(record.request_ids or ()):
            found.setdefault(req_id, "")
            found[req_id] += "P" if number < record.num_prefill_reqs else "D"
    return found


def is_mixed(record: BatchRecord) -> bool:
    """Tell whether prefill and decode share the batch."""
    return bool(record.num_prefill_reqs and record.num_decode_reqs)


def check_preemptions(mode: Mode) -> None:
    """Check that requests were preempted, computed again in several chunks, and preempted anew."""
    assert mode.sum("num_preempted_reqs") > 5
    histories = phases(mode.records).values()
    assert any(re.search("DPP", history) for history in histories)
    assert any(len(re.findall("DP", history)) > 1 for history in histories)


def num_cut_short(mode: Mode, max_tokens: int) -> int:
    """Return how many requests did not get all the tokens they asked for."""
    return sum(told["generated"] < max_tokens for told in mode.told)


@pytest.mark.parametrize("name", ORACLE_MODES)
def test_every_record_is_what_the_oracle_says(modes: Run, name: str) -> None:
    """And there is one for every batch, under the next number."""
    mode = mode_of(modes, name)
    mode.account.check(mode.records)


@pytest.mark.parametrize("name", ORACLE_MODES)
def test_times_add_up(modes: Run, name: str) -> None:
    """One after the other, one ahead of the model, and two in a pipeline.

    The wall time is that of another clock, inside of what is measured.
    """
    mode = mode_of(modes, name)
    check_times(mode.records, mode.account.wall_ms)


@pytest.mark.parametrize("name", [name for name in ORACLE_MODES if name != "pooling"])
def test_the_records_hold_the_tokens_that_vllms_outputs_hold(modes: Run, name: str) -> None:
    """Those of aborted requests as well: what a batch brought reached the outputs."""
    mode = mode_of(modes, name)
    assert mode.sum("num_generated_tokens") == sum(told["generated"] for told in mode.told) > 0
    assert mode.sum("num_new_reqs") <= len(mode.told)


def test_long_prompts_are_chunked_between_decodes(modes: Run) -> None:
    """The longest takes eight batches; one leaves a single token for its last chunk."""
    mode = mode_of(modes, "chunked_and_cached")
    histories = phases(mode.records).values()
    assert max(history.count("P") for history in histories) >= 8
    assert sum(map(is_mixed, mode.records)) > 10
    assert max(record.num_waiting_reqs for record in mode.records) > 0


def test_prompts_from_the_prefix_cache_are_not_scheduled(modes: Run) -> None:
    """Two are cached but for their last token, which is a prefill chunk of 1."""
    mode = mode_of(modes, "chunked_and_cached")
    assert mode.sum("num_cached_tokens") == sum(told["cached"] for told in mode.told) > 0
    fully = [told for told in mode.told if told["cached"] and told["cached"] + 1 == told["prompt"]]
    assert len(fully) == 2
    first = next(record for record in mode.records if record.num_cached_tokens)
    assert sorted(first.prefill_chunk_sizes)[:2] == [1, 1]
    prefill = sum(told["prompt"] - told["cached"] for told in mode.told)
    assert mode.sum("num_prefill_tokens") == prefill


def test_preemption_without_a_prefix_cache_recomputes_everything(modes: Run) -> None:
    """More prompt tokens are scheduled than there are."""
    mode = mode_of(modes, "preempted")
    check_preemptions(mode)
    assert mode.sum("num_resumed_reqs") == mode.sum("num_preempted_reqs")
    assert mode.sum("num_cached_tokens") == 0
    assert mode.sum("num_prefill_tokens") > sum(told["prompt"] for told in mode.told)


def test_preemption_with_a_prefix_cache_recomputes_less(modes: Run) -> None:
    """The prompts share a beginning, which new requests find in the cache as well."""
    mode = mode_of(modes, "preempted_and_cached")
    check_preemptions(mode)
    assert mode.sum("num_resumed_reqs") == mode.sum("num_preempted_reqs")
    assert mode.sum("num_cached_tokens") > 0


def test_requests_that_go_away_are_not_followed(modes: Run) -> None:
    """Before they were scheduled, in the middle of an answer, and preempted.

    The last to finish do so in a step without a batch: the next record tells, long after.
    """
    mode = mode_of(modes, "aborted")
    check_preemptions(mode)
    late = next(record for record in mode.records if record.request_ids[0].startswith("24-"))
    assert late.num_running_reqs == late.num_new_reqs == 1
    assert late.num_finished_reqs
    assert mode.sum("num_new_reqs") < len(mode.told)
    assert any(0 < told["generated"] < 100 for told in mode.told)
    assert num_cut_short(mode, 100) > 8


def test_a_request_of_higher_priority_overtakes(modes: Run) -> None:
    """Requests come in the order of rising priority, and start in another one."""
    mode = mode_of(modes, "priority")
    assert mode.sum("num_resumed_reqs") == mode.sum("num_preempted_reqs") > 4
    # vLLM appends a suffix of its own to the number by which a request was added.
    started = [int(req_id.split("-")[0]) for req_id in phases(mode.records)]
    assert sorted(started) == list(range(len(mode.told))) != started
    assert len(mode.told) - 1 in started[:-3]


def test_a_chunk_of_one_token_may_be_prefill(modes: Run) -> None:
    """Of a prompt, and of what is computed again after a preemption."""
    mode = mode_of(modes, "priority")
    histories: dict[str, str] = {}
    num_recomputed_alone = 0
    for record in mode.records:
        for number, chunk in enumerate(record.prefill_chunk_sizes):
            num_recomputed_alone += chunk == 1 and "D" in histories.get(
                record.request_ids[number], ""
            )
        for req_id in record.request_ids[record.num_prefill_reqs :]:
            histories[req_id] = "D"
    assert num_recomputed_alone > 3


def test_structured_output_follows_its_grammar(modes: Run, model: Path) -> None:
    """A regular expression, a choice and a JSON schema, in batches with free requests."""
    mode = mode_of(modes, "structured_output")
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    texts = [tokenizer.decode(told["tokens"]) for told in mode.told]
    assert all(re.fullmatch("[0-9]{3}-[a-f]{4}", text) for text in texts[:12:4])
    assert set(texts[1:12:4]) <= {"yes", "no, never"}
    assert all(len(told["tokens"]) == 20 for told in mode.told[2:12:4])
    assert all(text.startswith("{") for text in texts[3:12:4])
    assert any(map(is_mixed, mode.records))
    # Whoever waits although there is room waits for a grammar to be compiled.
    assert any(
        r.num_waiting_reqs and r.num_running_reqs < 12 and r.total_scheduled_tokens < 200
        for r in mode.records
    )


def test_a_pooling_model_has_prefill_only(modes: Run) -> None:
    """It generates nothing; long prompts come in chunks."""
    mode = mode_of(modes, "pooling")
    assert all(told["size"] == 128 for told in mode.told)
    assert mode.sum("num_prefill_tokens") == sum(told["prompt"] for told in mode.told)
    assert mode.sum("num_decode_reqs") == mode.sum("num_generated_tokens") == 0
    assert any("PPP" in history for history in phases(mode.records).values())


@pytest.mark.parametrize(
    "name", ["asynchronous_in_process", "asynchronous_workers", "pipeline_parallel"]
)
def test_batches_overlap(modes: Run, name: str) -> None:
    """And requests are aborted while their batch is in flight."""
    mode = mode_of(modes, name)
    in_flight = Counter(record.num_inflight_batches for record in mode.records)
    assert set(in_flight) == {0, 1}
    assert in_flight[1] > in_flight[0]
    assert any(map(is_mixed, mode.records))
    assert num_cut_short(mode, 40) > 4
    # A decode that brings no token belongs to someone who has gone meanwhile.
    assert any((r.num_generated_tokens or 0) < r.num_decode_reqs for r in mode.records)


def test_an_asynchronous_engine_preempts_what_is_in_flight(modes: Run) -> None:
    """Its newest token is a placeholder as yet; a grammar is in the batch as well."""
    mode = mode_of(modes, "asynchronous_in_process")
    check_preemptions(mode)
    assert mode.sum("num_cached_tokens") > 0
    assert mode.told[-1]["generated"] > 0


def test_accepted_and_rejected_drafts_are_vllms_own_statistics(modes: Run) -> None:
    """A request of several drafts is a decode with a larger chunk."""
    mode = mode_of(modes, "ngram")
    assert mode.sum("num_draft_tokens") > mode.sum("num_accepted_tokens") > 0
    assert max(max(record.decode_chunk_sizes, default=0) for record in mode.records) == 4
    assert all("num_accepted_tokens" in batch for batch in mode.account.batches)
    # The drafts of those who went away while the model ran were accepted by nobody.
    assert num_cut_short(mode, 60) > 2
    last_batch_of = {req_id: record for record in mode.records for req_id in record.request_ids}
    assert any(
        told["generated"] < 60 and last_batch_of[req_id].num_draft_tokens
        for req_id, told in ((r, mode.told[int(r.split("-")[0])]) for r in last_batch_of)
    )


MAX_TOKENS = 20
FLAGS = (
    "--max-model-len=2048",
    "--max-num-batched-tokens=256",
    "--max-num-seqs=16",
    "--scheduler-cls=oracle_scheduler.OracleScheduler",
    "--data-parallel-size=2",
    "--api-server-count=1",
)


@attrs.frozen
class Served:
    """Two engines behind one server, under load from clients of which some went away."""

    num_complete: int
    num_gone: int
    runs: list[list[BatchRecord]]
    accounts: list[Account]
    logs: list[Path]


def go_away(server: Server, prompt: str, *, num_bytes: int) -> None:
    """Ask for a long answer, and hang up after its first bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    body = {
        "model": server.model,
        "prompt": prompt,
        "max_tokens": 1000,
        "ignore_eos": True,
        "stream": True,
    }
    connection.request(
        "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
    )
    if num_bytes:
        assert connection.getresponse().read(num_bytes)
    else:
        time.sleep(0.02)
    connection.close()


def wait_until_idle(oracle: Path) -> None:
    """Wait until every batch has its result, and no further one comes."""
    before, deadline = -1, time.monotonic() + 60
    while time.monotonic() < deadline:
        batches = [batch for account in read_accounts(oracle) for batch in account.batches]
        if len(batches) == before and all("num_generated_tokens" in b for b in batches):
            return
        before = len(batches)
        time.sleep(1)
    raise TimeoutError("the engines go on and on")


@pytest.fixture(scope="module")
def served(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Serve with data parallel 2."""
    folder = tmp_path_factory.mktemp("data_parallel")
    log, oracle = folder / "profile.jsonl", folder / "oracle"
    environ = {
        "VLLM_ENABLE_SCHEDULER_PROFILING": "true",
        "VLLM_SCHEDULER_PROFILING_LOG": str(log),
        "SCHED_PROFILER_REQUEST_IDS": "1",
        "SCHED_PROFILER_STRICT": "1",
        "SCHED_ORACLE": str(oracle),
        "PYTHONPATH": str(Path(__file__).parent),
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    rng = random.Random(3)
    prompts = ["".join(rng.choices("abcdef", k=rng.choice([3, 60, 400, 1000]))) for _ in range(72)]

    def client(number: int) -> bool:
        if number % 3:
            answer = server.complete(prompts[number], MAX_TOKENS)
            assert answer["usage"]["completion_tokens"] == MAX_TOKENS
            return True
        go_away(server, prompts[number], num_bytes=800 * (number % 5))
        return False

    with serve(model, log=folder / "server.log", environ=environ, flags=FLAGS) as server:
        with ThreadPoolExecutor(12) as clients:
            complete = list(clients.map(client, range(len(prompts))))
        wait_until_idle(oracle)
    logs = sorted(folder.glob("profile*.jsonl"))
    runs = [run for log in logs for run in read(log)]
    return Served(sum(complete), complete.count(False), runs, read_accounts(oracle), logs)


def test_each_data_parallel_engine_has_a_run_and_a_rank(served: Served) -> None:
    """And a log of its own; the rank is the one in vLLM's name of the process."""
    assert [log.name for log in served.logs] == ["profile.dp1.jsonl", "profile.jsonl"]
    assert len(served.runs) == len(served.accounts) == 2
    ranks = [{record.dp_rank for record in run} for run in served.runs]
    assert sorted(ranks, key=str) == [{0}, {1}]
    assert {a.process for a in served.accounts} == {"EngineCore_DP0", "EngineCore_DP1"}


def test_every_record_of_a_server_is_what_the_oracle_says(served: Served) -> None:
    """Under concurrent load, with clients that disconnect; each rank without a gap."""
    accounts = {account.process: account for account in served.accounts}
    for run in served.runs:
        account = accounts[f"EngineCore_DP{run[0].dp_rank}"]
        account.check(run)
        check_times(run, account.wall_ms)
        assert any(map(is_mixed, run))
        assert max(record.num_running_reqs for record in run) > 3


def test_clients_that_disconnect_end_their_requests(served: Served) -> None:
    """Nobody who stayed is cut short; of those who left some are, in the middle of the answer."""
    histories = [history for run in served.runs for history in phases(run).values()]
    # The first token comes with the last chunk of the prompt.
    lengths = [history.count("D") + 1 for history in histories]
    assert sum(length == MAX_TOKENS for length in lengths) >= served.num_complete > 40
    # The server notices late that a client has gone: it may have finished by then.
    left = [length for length in lengths if length != MAX_TOKENS]
    assert served.num_gone >= len(left)
    assert any(MAX_TOKENS / 4 < length < 1000 for length in left)


def test_every_line_of_a_rank_fits_the_schema(served: Served) -> None:
    """The one that ships with the package."""
    validator = jsonschema.Draft202012Validator(schema())
    for log in served.logs:
        for line in log.read_bytes().splitlines():
            validator.validate(json.loads(line))


def test_engines_in_lockstep_are_what_the_oracle_says(model: Path) -> None:
    """Two ranks in the order of vLLM's DPEngineCoreProc, which its CPU build does not run.

    Both step together. New prompts are put off to every fourth step, so there are steps that
    schedule nothing; a rank that ran no batch runs a dummy one past its scheduler.
    """
    ranks = [Engine(model, max_num_batched_tokens=64) for _ in range(2)]
    empty, dummy, step = [0, 0], [0, 0], 0

    def throttle(engine: Engine) -> None:
        schedule = engine.scheduler.schedule
        engine.scheduler.schedule = lambda: schedule(step % 4 != 0)

    for engine in ranks:
        throttle(engine)
    while step < 40 or any(engine.scheduler.has_requests() for engine in ranks):
        for rank, engine in enumerate(ranks):
            if step in (0, 5, 6, 33, 34 + rank):
                engine.add(100 + 30 * step, 6 + 20 * rank)
            num_records = len(engine.sink.records)
            if engine.scheduler.has_requests():
                engine.step()
                empty[rank] += len(engine.sink.records) == num_records
            dummy[rank] += len(engine.sink.records) == num_records
        step += 1
    for engine in ranks:
        engine.finish()
    # Steps that scheduled nothing, and steps past the scheduler, were among them.
    assert min(empty) > 0
    assert dummy[0] > empty[0]
