"""Records a server under many streaming clients for minutes: nothing lost, nothing dropped, memory flat.

    python tools/soak.py --model DIR [--seconds 180] [--clients 64] [--bare] [--out soak.json]

Each client streams one completion after the other, of changing length, and leaves every eighth one in the middle. At
the end the tokens that clients got are held against the trace, and the memory of all the engine's processes at the end
against that after the first minute. Exits with 1 where a figure misses its goal; a run of less than two minutes has
none for memory. `--bare` is the same without the recorder: what the engine's own memory does under this load.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from serving import MODEL_NAME, Server, session_processes

MEMORY_GOAL_MIB = 50.0
WARM_UP_SECONDS = 60.0
# The last samples of memory that are compared, so that one of them does not decide.
_NUM_SAMPLES = 5
_SAMPLE_SECONDS = 1.0


@dataclass
class Received:
    """What the clients got.

    Attributes:
        whole: token ids of completions that ended by themselves, by the client's id.
        left: token ids of those that the client left, as far as it saw them.
        failures: what went wrong, which nothing should.
    """

    whole: dict[str, list[int]] = field(default_factory=dict)
    left: dict[str, list[int]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(len(token_ids) for found in (self.whole, self.left) for token_ids in found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--bare", action="store_true", help="without the recorder: the engine's own memory")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()

    # So that the server's processes end with this one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="tracekit-soak-") as folder:
        figures = soak(args.model, Path(folder), args.seconds, args.clients, bare=args.bare)
    report(figures)
    if args.out:
        args.out.write_text(json.dumps(figures, indent=2) + "\n")
    sys.exit(1 if faults(figures) else 0)


def soak(model: Path | str, folder: Path, seconds: float, num_clients: int, *, bare: bool = False) -> dict[str, Any]:
    """Runs the server and its clients, and returns the figures.

    Args:
        model: a checkpoint folder.
        folder: where trace and log go.
        seconds: how long clients start new completions.
        num_clients: how many stream at once.
        bare: without the recorder; there is no trace to hold tokens against then.
    """
    trace = None if bare else folder / "soak.trace"
    # Few blocks, so that the whole KV cache has been touched before memory is looked at.
    options = ("--max-num-seqs", str(num_clients), "--num-gpu-blocks-override", str(2 * num_clients))
    with Server(model, trace, folder / "log", serve=options) as server:
        received, memory = asyncio.run(_load(server, seconds, num_clients))
        complete = trace is None or _wait_until_flushed(trace, received)
        server.stop(timeout=120.0)
        if not complete:
            received.failures.append(f"the trace never held all tokens; the server said: {server.tail()}")
    return (
        _of_clients(received)
        | ({} if trace is None else _of_trace(trace, received))
        | _of_memory(memory, seconds)
        | {
            "seconds": seconds,
            "num_clients": num_clients,
            "tokens_per_second": received.num_tokens / seconds,
            "failures": received.failures,
        }
    )


def faults(figures: dict[str, Any]) -> list[str]:
    """Returns which goals the figures miss, in words; none where all is well."""
    missed = [*figures["failures"]]
    if "num_rows_dropped" not in figures:
        return missed
    if figures["num_tokens_missing"] or figures["num_tokens_wrong"]:
        missed.append(f"{figures['num_tokens_missing']} tokens missing, {figures['num_tokens_wrong']} wrong")
    if figures["num_rows_dropped"] or figures["events"]:
        missed.append(f"{figures['num_rows_dropped']} rows dropped, events {figures['events']}")
    if figures["seconds"] >= 2 * WARM_UP_SECONDS and abs(figures["memory_growth_mib"]) > MEMORY_GOAL_MIB:
        missed.append(f"memory changed by {figures['memory_growth_mib']:+.0f} MiB")
    return missed


def report(figures: dict[str, Any]) -> None:
    print(
        f"{figures['num_clients']} streaming clients, {figures['seconds']:.0f} s: {figures['num_requests']} requests "
        f"({figures['num_left']} left in the middle), {figures['num_tokens']} tokens, "
        f"{figures['tokens_per_second']:.0f} tokens/s"
    )
    if "num_rows_dropped" in figures:
        print(f"  tokens that clients got and the trace lacks: {figures['num_tokens_missing']}  [goal 0]")
        print(f"  tokens that differ: {figures['num_tokens_wrong']}  [goal 0]")
        print(f"  rows dropped: {figures['num_rows_dropped']}  [goal 0]")
    else:
        print("  not recorded")
    print(
        f"  memory of {figures['num_processes']} processes: {figures['memory_early_mib']:.0f} MiB after "
        f"{figures['memory_early_seconds']:.0f} s, {figures['memory_late_mib']:.0f} MiB at the end, "
        f"{figures['memory_growth_mib']:+.1f} MiB  [goal within {MEMORY_GOAL_MIB:.0f}]"
    )
    for process, growth in figures["memory_growth_by_process"].items():
        print(f"    {process}: {growth:+.1f} MiB")
    for fault in faults(figures):
        print(f"  MISSED: {fault}")


# --- clients ---


async def _load(server: Server, seconds: float, num_clients: int) -> tuple[Received, list[Sample]]:
    import openai

    received = Received()
    samples: list[Sample] = []
    started = time.monotonic()
    limits = openai.DefaultAsyncHttpxClient(timeout=600.0)
    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, http_client=limits
    ) as client:
        watcher = asyncio.create_task(_watch(server, started, samples))
        await asyncio.gather(*(_stream(client, index, started + seconds, received) for index in range(num_clients)))
        watcher.cancel()
    return received, samples


async def _stream(client: Any, index: int, end: float, received: Received) -> None:
    """Streams completions one after the other until the time is over."""
    chance = random.Random(index)
    for turn in range(sys.maxsize):
        if time.monotonic() >= end:
            return
        client_id = f"c{index}-{turn}"
        leaves = (index + turn) % 8 == 7
        token_ids: list[int] = []
        try:
            reply = await client.completions.create(
                model=MODEL_NAME,
                prompt=f"Letter {turn} of client {index} begins:",
                max_tokens=chance.randrange(8, 96),
                temperature=chance.choice((0.0, 0.8, 1.0)),
                stream=True,
                extra_headers={"X-Request-Id": client_id},
                extra_body={"return_token_ids": True, "ignore_eos": True},
            )
            async for chunk in reply:
                for choice in chunk.choices:
                    token_ids += choice.token_ids or []
                if leaves and len(token_ids) >= 4:
                    await reply.close()
                    break
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            received.failures.append(f"{client_id}: {error!r}")
            return
        (received.left if leaves else received.whole)[client_id] = token_ids


# --- memory ---


class Sample(NamedTuple):
    """Resident memory at one moment: seconds since the start, and MiB by process."""

    seconds: float
    mib: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.mib.values())


async def _watch(server: Server, started: float, samples: list[Sample]) -> None:
    """Notes the memory of all processes again and again."""
    while True:
        samples.append(Sample(time.monotonic() - started, dict(_resident_mib(server.process.pid))))
        await asyncio.sleep(_SAMPLE_SECONDS)


def _resident_mib(session_id: int) -> Iterator[tuple[str, float]]:
    for process_id in session_processes(session_id):
        try:
            text = Path(f"/proc/{process_id}/smaps_rollup").read_text()
            name = Path(f"/proc/{process_id}/comm").read_text().strip()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        # What processes share is divided among them, so that the sum counts it once.
        pss = next(line for line in text.splitlines() if line.startswith("Pss:")).split()[1]
        yield f"{name} ({process_id})", int(pss) / 1024


def _of_memory(samples: list[Sample], seconds: float) -> dict[str, Any]:
    early_at = min(WARM_UP_SECONDS, seconds / 3)
    early = [sample for sample in samples if sample.seconds >= early_at][:_NUM_SAMPLES]
    late = [sample for sample in samples if sample.seconds <= seconds][-_NUM_SAMPLES:]
    before, after = (statistics.median(sample.total for sample in group) for group in (early, late))
    return {
        "memory_early_seconds": early_at,
        "memory_early_mib": before,
        "memory_late_mib": after,
        "memory_growth_mib": after - before,
        "memory_growth_by_process": {
            process: statistics.median(sample.mib.get(process, 0.0) for sample in late)
            - statistics.median(sample.mib.get(process, 0.0) for sample in early)
            for process in samples[-1].mib
        },
        "num_processes": len(samples[-1].mib),
    }


# --- the trace ---


def _wait_until_flushed(path: Path, received: Received, timeout: float = 120.0) -> bool:
    """Waits until all endings and tokens are in the trace: a worker that vLLM kills loses what it had not flushed."""
    from tracekit.analysis import connect

    num_requests = len(received.whole) + len(received.left)
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        with connect(path) as session:
            query = "SELECT count(*), sum(num_output_tokens) FROM outcomes WHERE finish_reason IS NOT NULL"
            ((num_ended, num_delivered),) = session.sql(query).rows()
            ((num_tokens,),) = session.sql("SELECT count(*) FROM tokens").rows()
        if num_ended == num_requests and num_tokens + sum(_dropped(path)) >= num_delivered:
            return True
        time.sleep(1.0)
    return False


def _dropped(path: Path) -> Iterator[int]:
    from tracekit.store import Trace

    for event in Trace(path).read("events", ["kind", "attributes"]).to_pylist():
        if event["kind"] == "rows_dropped":
            yield json.loads(event["attributes"])["num_rows"]


def _of_clients(received: Received) -> dict[str, Any]:
    return {
        "num_requests": len(received.whole) + len(received.left),
        "num_left": len(received.left),
        "num_tokens": received.num_tokens,
    }


def _of_trace(path: Path, received: Received) -> dict[str, Any]:
    from tracekit.analysis import connect

    query = (
        "SELECT external_id, output_index, token_id FROM tokens JOIN requests USING (run_id, request_id) "
        "WHERE output_index IS NOT NULL"
    )
    with connect(path) as session:
        rows = session.sql(query).rows()
        kinds = {kind for (kind,) in session.sql("SELECT DISTINCT kind FROM events").rows()}
    recorded = {(client_id, index): token_id for client_id, index, token_id in rows}
    expected = {
        (client_id, index): token_id
        for client_id, token_ids in {**received.whole, **received.left}.items()
        for index, token_id in enumerate(token_ids)
    }
    # The engine may be ahead of a client that left, and of no other.
    beyond = [key for key in recorded.keys() - expected.keys() if key[0] not in received.left]
    differing = [key for key in recorded.keys() & expected.keys() if recorded[key] != expected[key]]
    return {
        "num_tokens_missing": len(expected.keys() - recorded.keys()),
        "num_tokens_wrong": len(beyond) + len(differing) + len(rows) - len(recorded),
        "num_rows_dropped": sum(_dropped(path)),
        "events": sorted(kinds - {"writer_closed", "rows_dropped"}),
    }


if __name__ == "__main__":
    main()
