"""Whether token ids mean to a model what they meant where they were recorded."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tracekit.errors import ModelError
from tracekit.fingerprint import tokenizer_hash

logger = logging.getLogger("tracekit")


def check_tokenizer(runs: Iterable[Mapping[str, Any]], model: Path | None) -> None:
    """Proves that a model's tokenizer is that of recorded runs, where both are known.

    Raises:
        ModelError: they are other files.
    """
    own = None if model is None else tokenizer_hash(model)
    for run in runs:
        if None not in (own, run["tokenizer_hash"]) and own != run["tokenizer_hash"]:
            raise ModelError(
                f"the tokenizer of {model} ({own}) is not the recorded one ({run['tokenizer_hash']}), so token ids may "
                "stand for other texts; give the model that the trace was recorded with, or --any-tokenizer where the "
                "two tokenizers differ in their files only"
            )


def warn_of_vocabulary(runs: Iterable[Mapping[str, Any]], model: Path | None, vocab_size: int | None) -> None:
    """Says so where recorded logits had more or fewer entries than the model's; padding alone can do that."""
    recorded = {run["vocab_size"] for run in runs} - {None, vocab_size}
    if vocab_size is not None and recorded:
        logger.warning(
            "tracekit: warning: %s has a vocabulary of %d, the recorded one is of %s: where these entries are more "
            "than padding, logprobs are of other distributions",
            *(model, vocab_size, " or ".join(map(str, sorted(recorded)))),
        )
