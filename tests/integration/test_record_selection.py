"""A recording of a selection holds the chosen requests whole, and of the others nothing but their places in steps."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from engine import run_engine
from tracekit.analysis import connect
from tracekit.store import Trace

pytestmark = pytest.mark.engine


class Recordings:
    def __init__(self, outputs: list[dict[str, Any]], folder: Path) -> None:
        self.folder = folder
        self.token_ids: dict[tuple[str, int | None], list[int]] = {}
        for output in outputs:
            for sample in output["samples"]:
                key = output["request_id"], sample["index"] if output["request_id"] == "pair" else None
                self.token_ids[key] = sample["token_ids"]
        self.prompts = {output["request_id"]: output["prompt_token_ids"] for output in outputs}

    def rows(self, name: str, query: str) -> list[tuple[Any, ...]]:
        with connect(self.folder / name) as session:
            return list(session.sql(query).rows())

    def chosen(self, name: str) -> set[tuple[str, int | None]]:
        """Returns the requests of a recording, after checking that each is whole and no other leaves any row."""
        query = "SELECT request_id, external_id, sample_index, prompt_text, num_cached_tokens FROM requests"
        found = {row[0]: row[1:] for row in self.rows(name, query)}
        for request_id, (external_id, _, text, cached) in found.items():
            # Known to the front end, and known to the worker.
            assert text == f"The {external_id} one is", request_id
            assert cached is not None, request_id
        ended = self.rows(name, "SELECT request_id, finish_reason, num_output_tokens FROM outcomes")
        assert sorted(ended) == sorted((request_id, "length", 4) for request_id in found)
        query = "SELECT request_id, list(token_id ORDER BY output_index) FROM tokens_all GROUP BY 1"
        tokens = {found[request_id][:2]: ids for request_id, ids in self.rows(name, query)}
        assert tokens == {key: self.token_ids[key] for key in tokens}
        assert tokens.keys() == {row[:2] for row in found.values()}
        return set(tokens)


@pytest.fixture(scope="module")
def recordings(shallow_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Recordings:
    folder = tmp_path_factory.mktemp("selection")
    run_engine("selection", shallow_model, folder / "outputs.json", folder)
    outputs = json.loads((folder / "outputs.json").read_text())["requests"]
    # Equal seeds: every recording saw the same tokens, which `chosen` checks against those of the first.
    return Recordings(outputs[:7], folder)


def _single(*names: str) -> set[tuple[str, int | None]]:
    return {(name, None) for name in names}


PAIR = {("pair", 0), ("pair", 1)}


def test_everything_but_what_refuses(recordings: Recordings) -> None:
    assert recordings.chosen("all") == _single("greedy", "nucleus", "plain", "asked", "odd") | PAIR


def test_by_predicate(recordings: Recordings) -> None:
    assert recordings.chosen("where") == _single("nucleus", "asked", "odd") | PAIR


def test_the_first(recordings: Recordings) -> None:
    # Those that the predicate leaves in come in this order: nucleus, odd, pair; what asks for itself is not counted.
    assert recordings.chosen("first") == _single("nucleus", "asked", "odd") | PAIR


def test_a_share_of_trajectories_groups_and_prompts(recordings: Recordings) -> None:
    def is_in(key: str) -> bool:
        digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
        return int.from_bytes(digest[:8], "big") / 2**64 < 0.5

    def prompt_hash(name: str) -> str:
        ids = recordings.prompts[name]
        return hashlib.blake2b(struct.pack(f"<{len(ids)}i", *ids), digest_size=16).hexdigest()

    keys = {"greedy": "t0", "nucleus": "t1", "plain": "g", "odd": "t0"}
    expected = _single("asked", *(name for name, key in keys.items() if is_in(key)))
    expected |= PAIR if is_in(prompt_hash("pair")) else set()
    assert 1 < len(expected) < 7, "this choice of keys tells nothing"
    assert recordings.chosen("share") == expected


def test_none_but_what_asks(recordings: Recordings) -> None:
    assert recordings.chosen("none") == _single("asked")


@pytest.mark.parametrize("name", ["all", "where", "share", "first", "none"])
def test_steps_list_the_whole_batch(recordings: Recordings, name: str) -> None:
    steps = Trace(recordings.folder / name).read("steps").to_pylist()
    # Four tokens each of eight sequences, all in the same batches.
    assert max(step["num_requests"] for step in steps) == 8
    assert sum(step["num_decode_tokens"] for step in steps) == 3 * 8


def test_hidden_states_of_the_request_that_asked(recordings: Recordings) -> None:
    query = "SELECT external_id, count(*) FROM hidden JOIN requests USING (run_id, request_id) GROUP BY 1"
    assert recordings.rows("all", query) == [("asked", 4)]


def test_labels_have_their_columns(recordings: Recordings) -> None:
    query = (
        "SELECT external_id, trajectory_id, group_id, turn_index, tags FROM requests "
        "WHERE external_id IN ('greedy', 'nucleus', 'plain', 'odd') ORDER BY 1"
    )
    assert recordings.rows("all", query) == [
        ("greedy", "t0", None, 0, None),
        ("nucleus", "t1", "g", None, None),
        ("odd", "t0", None, None, None),
        ("plain", None, "g", None, '{"split": "eval"}'),
    ]
    query = "SELECT attributes FROM events WHERE kind = 'label_refused'"
    ((attributes,),) = recordings.rows("all", query)
    assert "'turn_index' is 'second'" in json.loads(attributes)["reason"]
    query = "SELECT sampling_params FROM requests WHERE external_id = 'plain'"
    ((params,),) = recordings.rows("all", query)
    assert json.loads(params)["extra_args"] == {"mine": 1}
