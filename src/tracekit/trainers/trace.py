"""`TrainerTrace`: a trainer's logprobs as a trace that aligns with the rollout it trains on."""

from __future__ import annotations

import atexit
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from tracekit.errors import ConfigError, InputError, OutputExistsError, TracekitError, nearest
from tracekit.store import Manifest, Trace, TraceWriter, create_trace
from tracekit.trainers.batch import COVERS, Batch, check_known
from tracekit.trainers.passes import Pass
from tracekit.trainers.source import Source
from tracekit.trainers.thread import WriterThread, rows_of
from tracekit.trainers.values import lay_out

_log = logging.getLogger(__name__)

# Of so many passes the requests that were logged are remembered, to refuse a second time.
_NUM_REMEMBERED = 64


class TrainerTrace:
    """Takes logprobs that a trainer computes for recorded requests, and writes them as a trace of role trainer.

    Prompts, token ids and positions come from the source, so the new trace is complete and `tracekit diff` compares
    both. The source may still be recorded. A call of `log` copies and hands over to a thread; what does not fit is
    raised by that call where it is known already, else by a later one, or by `close`.

    Several processes may write one trace, each with a `TrainerTrace` of its own: every rank logs its own requests, and
    of ranks that compute the same logprobs (tensor parallelism) one logs. Each pass (policy, step, weights) over the
    requests becomes a run of its own.

    Args:
        path: the new trace. One that exists and has the same source is gone on with.
        source: the rollout's trace, or its path.
        source_run: the run of the source, needed where its request ids repeat over runs.
        run: columns of `runs` that the trainer knows of itself, such as model, dtype, engine.
        rank: of this process; the variable RANK by default.
        unknown: 'error' or 'skip': what to do with requests that the source does not hold, as where it recorded a
            share of them.
        patience: seconds to wait for requests that are not in the source yet.
        num_queued: calls that may wait to be written; then `log` waits.

    Raises:
        NotATraceError, TraceFormatError: the source cannot be read.
        OutputExistsError: another trace is there.
        ConfigError: an impossible setting.
    """

    def __init__(
        self,
        path: Path | str,
        source: Trace | Path | str,
        *,
        source_run: str | None = None,
        run: Mapping[str, Any] | None = None,
        rank: int | None = None,
        unknown: str = "error",
        patience: float = 30.0,
        num_queued: int = 64,
    ) -> None:
        if unknown not in ("error", "skip"):
            raise ConfigError(f"unknown='{unknown}' is not known{nearest(unknown, ('error', 'skip'))}")
        self.path = Path(path)
        rollout = source if isinstance(source, Trace) else Trace(source)
        self._source = Source(rollout, source_run)
        _create_or_join(self.path, rollout)
        self._patience = patience
        self._logged: OrderedDict[Pass, set[Any]] = OrderedDict()
        self._closed = False
        number = int(os.environ.get("RANK", "0")) if rank is None else rank
        self._thread = WriterThread(
            TraceWriter(self.path, run_id="trainer"),
            self._source,
            known=dict(run or {}),
            more={"rank": number, "world_size": int(os.environ.get("WORLD_SIZE", "1"))},
            num_queued=num_queued,
            skip_unknown=unknown == "skip",
        )
        atexit.register(self._close_quietly)

    @property
    def num_tokens(self) -> int:
        """Tokens written so far."""
        return self._thread.num_tokens

    @property
    def num_skipped(self) -> int:
        """Rows left out so far, since the source does not hold their requests."""
        return self._thread.num_skipped

    def log(
        self,
        request_ids: Sequence[Any],
        logprobs: Any,
        *,
        distribution: str = "processed",
        policy: str = "current",
        trainer_step: int | None = None,
        weight_version: int | None = None,
        weight_label: str | None = None,
        loss_mask: Any = None,
        advantage: Any = None,
        entropy: Any = None,
        mask: Any = None,
        lengths: Any = None,
        cu_seqlens: Any = None,
        covers: str = "delivered",
    ) -> None:
        """Takes the logprobs of the tokens of some requests.

        Args:
            request_ids: B ids: of the engine, of the caller (external), or (external id, sample index). A list in
                place of an id names the turns of one conversation, whose tokens follow each other in the row.
            logprobs: tensors of any dtype and device, arrays or lists: a list of B pieces; [B, T] padded, with `mask`
                [B, T] or `lengths` [B]; or [N] packed, with `cu_seqlens` [B + 1]. The value at a token is its own.
            distribution: 'processed' where logits were divided by the sampling temperature, as verl, TRL, slime and
                prime-rl do; 'raw' where they were not. The column of the other one stays null.
            policy: 'current', the policy being updated; 'old', that of the rollout computed again; 'reference'.
            trainer_step: the trainer's step.
            weight_version: the weights, counted as the rollout's engine counts them; gives the lag.
            weight_label: what the trainer calls them.
            loss_mask: which tokens enter the loss; one value a token, or a row.
            advantage: one value a token, or a row.
            entropy: of the same distribution as the logprobs, in nat.
            mask: which entries of padded or packed input are tokens of the requests' outputs.
            lengths: how many entries of each row are.
            cu_seqlens: where packed rows begin and end.
            covers: 'delivered', what the client got; 'sampled', discarded tokens too; 'without_last', all delivered
                ones but the last, for trainers that drop the end-of-sequence token.

        Raises:
            InputError: values that do not fit each other or the source, or a request for the second time in one pass;
                also for an earlier call.
            ConfigError: unknown policy, distribution or coverage.
        """
        if self._closed:
            raise ValueError(f"{self.path} is closed")
        self._thread.raise_failure()
        if covers not in COVERS:
            raise ConfigError(f"covers='{covers}' is not known{nearest(covers, COVERS)}")
        of = Pass(policy, trainer_step, weight_version, weight_label, distribution)
        ids = [request_ids] if isinstance(request_ids, str) else list(request_ids)
        layout, values = lay_out(logprobs, len(ids), mask=mask, lengths=lengths, cu_seqlens=cu_seqlens)
        raw = distribution == "raw"
        columns: dict[str, Any] = {"logprob" if raw else "processed_logprob": values}
        if entropy is not None:
            columns["entropy" if raw else "processed_entropy"] = layout.flatten("entropy", entropy)
        if advantage is not None:
            columns["advantage"] = layout.flatten("advantage", advantage)
        if loss_mask is not None:
            columns["loss_mask"] = np.not_equal(layout.flatten("loss_mask", loss_mask), 0)
        rows = list(rows_of(ids, layout.counts.tolist()))
        for row in rows:
            check_known(row, self._source, covers)
        self._remember(of, [name for row in rows for name in row.names])
        self._thread.put(Batch(of, rows, columns, covers, time.monotonic() + self._patience))

    def flush(self) -> None:
        """Waits until what was logged can be read by others; requests that the source still lacks go on waiting.

        Raises:
            InputError: something that was logged could not be written.
        """
        self._thread.wait(end=False)
        self._thread.raise_failure()

    def close(self) -> None:
        """Writes everything, and ends the trace.

        Raises:
            InputError: something that was logged could not be written.
        """
        if not self._closed:
            self._closed = True
            atexit.unregister(self._close_quietly)
            self._thread.wait(end=True)
        self._thread.raise_failure()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._close_quietly()

    def _close_quietly(self) -> None:
        # The loop's own exception is on its way, and must not be replaced.
        try:
            self.close()
        except TracekitError as error:
            _log.warning("the trainer's trace was not closed: %s", error)

    def _remember(self, of: Pass, names: list[Any]) -> None:
        logged = self._logged.setdefault(of, set())
        self._logged.move_to_end(of)
        for name in names:
            if name in logged:
                raise InputError(
                    f"request '{name}' was logged already ({of.described()}); "
                    "give another trainer_step, weight_version or policy"
                )
            logged.add(name)
        while len(self._logged) > _NUM_REMEMBERED:
            self._logged.popitem(last=False)


def _create_or_join(path: Path, source: Trace) -> None:
    parent = source.manifest.trace_id
    try:
        create_trace(path, "trainer", parent=parent)
    except OutputExistsError:
        # Another rank made it, or an earlier start of this trainer.
        found = Manifest.read(path)
        if (found.role, found.parent) != ("trainer", parent):
            raise OutputExistsError(
                f"{path} exists already and is a {found.role} trace of another source; choose another path"
            ) from None
