"""Which requests are recorded.

The front end decides, and where it does the decision travels with the request to the worker, as the label
`tracekit_record`: only the front end has seen HTTP headers, and only one process can count to N. A worker decides by
itself for requests that bring no decision. Both use the same rules:

1. what the request itself says (label `tracekit_record`);
2. else: `where` is true of it, its trajectory, group or prompt is in the `share`, and it is among the `first` of those.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tracekit.record.config import RecordConfig
from tracekit.record.labels import labels_of
from tracekit.record.predicate import parse_predicate

Row = Mapping[str, Any]


class Choice(NamedTuple):
    """What to keep of one request: rows at all, and besides them hidden states and whole logits rows."""

    record: bool
    hidden: bool
    logits: bool


class Selection:
    """Decides for one engine in one process.

    Attributes:
        takes_all: whether every request is wanted that does not say otherwise itself.
    """

    def __init__(self, config: RecordConfig) -> None:
        self._hidden = config.hidden
        self._logits = config.logits
        self._share = config.share
        self._where = None if config.where is None else parse_predicate(config.where)
        self._num_left = config.first
        self.takes_all = config.share >= 1 and config.where is None and config.first is None

    @property
    def unknown(self) -> Choice:
        """What to keep of a request of which nothing is known: it counts as one that fits no selection."""
        return Choice(self.takes_all, self._hidden, self._logits)

    def choose(self, extra_args: Mapping[str, Any] | None, columns: Callable[[], Row]) -> Choice:
        """Decides on a request; ask once for each, since it may be counted.

        Args:
            extra_args: of its sampling parameters: what the request, or the front end, says itself.
            columns: returns its row of `requests`; called where the decision depends on it.
        """
        wishes = labels_of(extra_args).wishes
        record = wishes.record
        if record is None:
            record = self.takes_all or self.wants(columns())
        hidden = self._hidden if wishes.hidden is None else wishes.hidden
        logits = self._logits if wishes.logits is None else wishes.logits
        return Choice(record, record and hidden, record and logits)

    def wants(self, row: Row) -> bool:
        """Tells whether the settings, `first` among them, leave a request in; ask once for each."""
        if not self.matches(row):
            return False
        if self._num_left is None:
            return True
        if self._num_left == 0:
            return False
        self._num_left -= 1
        return True

    def matches(self, row: Row) -> bool:
        """Tells whether `where` and `share` leave a request in; the same answer in every process and run."""
        if self._where is not None and not self._where(row):
            return False
        return self._share >= 1 or is_in_share(row, self._share)


def is_in_share(row: Row, share: float) -> bool:
    """Tells whether a request belongs to a share of all, as schemas/README.md defines it.

    A conversation is in or out as a whole where its requests name their trajectory, or their group.
    """
    key = row.get("trajectory_id") or row.get("group_id") or row.get("prompt_hash")
    if key is None:
        return True
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
