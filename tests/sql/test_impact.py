"""What fixing a cause would change, against the same figures from NumPy in float64."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from factories import make_request, make_trace
from tracekit import TrainerTrace, connect
from tracekit.analysis.explain.impact import BYPASS, DECOUPLED, MISMATCH, Impact, impacts
from tracekit.analysis.session import Session
from tracekit.demo import FP32, ROLLOUT

LENGTHS = (40, 7, 1, 90)
RAW = "raw_logprobs"
STALE = "stale_engine"

# As `explain` makes them, from what is processed alone.
EXPLAINED = """
CREATE TEMP TABLE explained AS
SELECT request_id, output_index, position, match_id, a_processed_logprob AS a_value, b_processed_logprob AS b_value,
    d_processed AS d, temperature
FROM _pairs
"""
DELTAS = "CREATE TEMP TABLE _deltas (match_id INTEGER, output_index INTEGER, cause VARCHAR, delta DOUBLE)"

Arrays = list[np.ndarray]


def narrow(values: np.ndarray) -> np.ndarray:
    """As traces store them."""
    return values.astype(np.float32).astype(np.float64)


class Made:
    """A rollout, and what a trainer computes of it."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(3)
        self.names = [f"r{index}" for index in range(len(LENGTHS))]
        self.rollout_values = [narrow(-rng.exponential(1.0, num)) for num in LENGTHS]
        self.old = [narrow(each + rng.normal(0, 0.4, len(each))) for each in self.rollout_values]
        self.current = [narrow(each + rng.normal(0, 0.3, len(each))) for each in self.old]
        self.advantage = [narrow(rng.normal(0, 1, num)) for num in LENGTHS]
        self.mask = [rng.random(num) < 0.8 for num in LENGTHS]
        self.mask[2][:] = True
        self.deltas = {
            RAW: [narrow(rng.normal(0.2, 0.2, num)) for num in LENGTHS],
            # Of one request's end only.
            STALE: [np.where(np.arange(num) >= 20, 0.5 * (num == 90), 0.0) for num in LENGTHS],
        }
        self.path = folder / "trainer"
        self.rollout = make_trace(
            folder / "rollout",
            requests=[
                make_request(name, prompt=[index], token_ids=list(range(num)), logprob=values, temperature=1.0)
                for index, (name, num, values) in enumerate(zip(self.names, LENGTHS, self.rollout_values, strict=True))
            ],
        )

    def train(self, *policies: str, step: int = 0, advantages: bool = True, of: int | None = None) -> None:
        more: dict[str, Any] = {"advantage": self.advantage[:of], "loss_mask": self.mask[:of]} if advantages else {}
        with TrainerTrace(self.path, source=self.rollout) as trace:
            for policy in policies:
                values = getattr(self, policy)
                trace.log(self.names[:of], values[:of], policy=policy, trainer_step=step, **more)

    @contextmanager
    def explained(self, causes: Sequence[str] = (RAW, STALE), **how: Any) -> Iterator[duckdb.DuckDBPyConnection]:
        with connect(self.rollout, self.path, **how) as session:
            yield prepared(session, self.names, {cause: self.deltas[cause] for cause in causes})

    def kept(self, values: Arrays) -> Arrays:
        return [each[mask] for each, mask in zip(values, self.mask, strict=True)]

    def ratios(self, over: Arrays, under: Arrays, causes: Sequence[str] = ()) -> Arrays:
        """Log ratios of what enters the loss, without what some causes add."""
        found = []
        for index, (x, y) in enumerate(zip(over, under, strict=True)):
            found.append(x - y - sum((self.deltas[cause][index] for cause in causes), np.zeros(len(x))))
        return self.kept(found)


def prepared(session: Session, names: Sequence[str], deltas: Mapping[str, Arrays]) -> duckdb.DuckDBPyConnection:
    session.views()
    connection = session._connection.cursor()
    connection.execute(EXPLAINED)
    connection.execute(DELTAS)
    rows = [
        (name, index, cause, float(delta))
        for cause, of_requests in deltas.items()
        for name, of_request in zip(names, of_requests, strict=True)
        for index, delta in enumerate(of_request)
        if delta
    ]
    matches = dict(connection.execute("SELECT DISTINCT request_id, match_id FROM explained").fetchall())
    placed = [(matches[name], *row) for name, *row in rows if name in matches]
    connection.executemany("INSERT INTO _deltas VALUES ($1, $2, $3, $4)", placed)
    return connection


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


def mismatch(d: Arrays, before: Arrays | None = None) -> dict[str, float]:
    flat = np.concatenate(d)
    rho = np.exp(flat)
    finite = np.isfinite(flat if before is None else np.concatenate(before))
    return {
        "k2_kl": float((flat[finite] ** 2).mean() / 2),
        "k3_kl": float((rho - 1 - flat)[finite].mean()),
        "ratio_oob_fraction": float(((rho < 0.8) | (rho > 1.2)).mean()),
        "effective_sample_size": float(rho.sum() ** 2 / (len(rho) * (rho**2).sum())),
    }


def clipping(d: Arrays, advantage: Arrays) -> dict[str, float]:
    ratio, a = np.exp(np.concatenate(d)), np.concatenate(advantage)
    of_sequence = np.exp([each.mean() for each in d])
    sign = np.array([each.sum() for each in advantage])
    return {
        "clip_fraction_ppo": float((((a > 0) & (ratio > 1.2)) | ((a < 0) & (ratio < 0.8))).mean()),
        "clip_fraction_dapo": float((((a > 0) & (ratio > 1.28)) | ((a < 0) & (ratio < 0.8))).mean()),
        "clip_fraction_gspo": float(
            (((sign > 0) & (of_sequence > 1.0004)) | ((sign < 0) & (of_sequence < 0.9997))).mean()
        ),
    }


def correction(d: Arrays) -> dict[str, float]:
    rho = np.exp(np.concatenate(d))
    product, mean = (np.exp([getattr(each, how)() for each in d]) for how in ("sum", "mean"))
    truncated = np.minimum(rho, 2)
    return {
        "tis_truncated_fraction": float((rho > 2).mean()),
        "tis_truncated_fraction_3": float((rho > 3).mean()),
        "mis_masked_fraction": float((product > 3).mean()),
        "icepop_masked_fraction": float(((rho < 0.5) | (rho > 5)).mean()),
        "geometric_masked_fraction": float(((mean < 0.999) | (mean > 1.002)).mean()),
        "effective_sample_size_truncated": float(truncated.sum() ** 2 / (len(rho) * (truncated**2).sum())),
    }


def figures(found: Sequence[Impact], cause: str | None, mode: str) -> dict[str, tuple[float | None, float | None]]:
    return {each.name: (each.before, each.after) for each in found if (each.cause, each.mode) == (cause, mode)}


def near(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, Any]:
    assert before.keys() == after.keys()
    return {name: (pytest.approx(before[name], rel=1e-9), pytest.approx(after[name], rel=1e-9)) for name in before}


FIXES = [(RAW, [RAW]), (STALE, [STALE]), (None, [RAW, STALE])]


@pytest.mark.parametrize("compared", ["old", "current"])
def test_both_passes_tell_both_modes(made: Made, compared: str) -> None:
    made.train("old", "current")
    with made.explained(policy=compared) as connection:
        found = impacts(connection)
    over = getattr(made, compared)
    advantage = made.kept(made.advantage)
    assert dict.fromkeys(each.cause for each in found) == dict.fromkeys([RAW, STALE, None])
    for cause, removed in FIXES:
        assert figures(found, cause, MISMATCH) == near(
            *(mismatch(made.ratios(over, made.rollout_values, gone)) for gone in ([], removed))
        )
        assert figures(found, cause, BYPASS) == near(
            *(clipping(made.ratios(made.current, made.rollout_values, gone), advantage) for gone in ([], removed))
        )
        update = clipping(made.ratios(made.current, made.old), advantage)
        before, after = (correction(made.ratios(made.old, made.rollout_values, gone)) for gone in ([], removed))
        assert figures(found, cause, DECOUPLED) == near({**update, **before}, {**update, **after})
    assert not any(each.assumed or each.descriptive for each in found)
    num_kept = sum(int(mask.sum()) for mask in made.mask)
    assert {(each.num_tokens, each.num_sequences) for each in found} == {(num_kept, 4)}


def test_fixes_change_what_they_should(made: Made) -> None:
    """The figures of the other tests are not all equal before and after."""
    d = [made.ratios(made.current, made.rollout_values, gone) for gone in ([], [RAW], [RAW, STALE])]
    advantage = made.kept(made.advantage)
    for figure in (mismatch, correction, lambda each: clipping(each, advantage)):
        values = [figure(each) for each in d]
        assert any(values[0][name] != values[1][name] for name in values[0])
        assert any(values[1][name] != values[2][name] for name in values[0])


@pytest.mark.parametrize("policy", ["old", "current"])
def test_one_pass_stands_in_for_the_other(made: Made, policy: str) -> None:
    made.train(policy)
    with made.explained([RAW]) as connection:
        found = impacts(connection)
    values, advantage = getattr(made, policy), made.kept(made.advantage)
    before, after = (made.ratios(values, made.rollout_values, gone) for gone in ([], [RAW]))
    assert figures(found, RAW, MISMATCH) == near(mismatch(before), mismatch(after))
    assert figures(found, RAW, BYPASS) == near(clipping(before, advantage), clipping(after, advantage))
    assert figures(found, RAW, DECOUPLED) == near(correction(before), correction(after))
    assert {each.mode: each.assumed for each in found} == {
        MISMATCH: False,
        BYPASS: policy == "old",
        DECOUPLED: policy == "current",
    }
    assert {each.cause for each in found} == {RAW}


def test_without_advantages_nothing_is_said_of_clipping(made: Made) -> None:
    made.train("old", "current", advantages=False)
    made.mask = [np.full(num, True) for num in LENGTHS]
    with made.explained([STALE]) as connection:
        found = impacts(connection)
    assert {each.mode for each in found} == {MISMATCH, DECOUPLED}
    assert figures(found, STALE, DECOUPLED) == near(
        *(correction(made.ratios(made.old, made.rollout_values, gone)) for gone in ([], [STALE]))
    )


def test_the_pass_of_the_nearest_step_is_taken(made: Made) -> None:
    current = made.current
    made.train("old", step=4)
    made.current = [each - 1 for each in current]
    made.train("current", step=1)
    made.current = current
    made.train("current", step=4)
    made.current = [each + 1 for each in current]
    made.train("current", step=9)
    made.current = current
    with made.explained([RAW]) as connection:
        found = impacts(connection)
    advantage = made.kept(made.advantage)
    assert figures(found, RAW, BYPASS) == near(
        *(clipping(made.ratios(current, made.rollout_values, gone), advantage) for gone in ([], [RAW]))
    )


def test_advantages_of_the_other_pass_count(made: Made) -> None:
    made.train("old", advantages=False)
    made.train("current")
    with made.explained([RAW]) as connection:
        found = impacts(connection)
    before, after = (made.ratios(made.current, made.rollout_values, gone) for gone in ([], [RAW]))
    advantage = made.kept(made.advantage)
    assert figures(found, RAW, BYPASS) == near(clipping(before, advantage), clipping(after, advantage))


def test_requests_whose_policy_is_known_are_preferred(made: Made) -> None:
    """Two of four requests have a current pass; bypass is of these."""
    made.train("old")
    made.train("current", of=2)
    with made.explained([RAW]) as connection:
        found = impacts(connection)
    before, after = (made.ratios(made.current, made.rollout_values, gone)[:2] for gone in ([], [RAW]))
    advantage = made.kept(made.advantage)[:2]
    assert figures(found, RAW, BYPASS) == near(clipping(before, advantage), clipping(after, advantage))
    assert {(each.mode, each.num_sequences) for each in found if not each.name.startswith("clip")} == {
        (MISMATCH, 4),
        (DECOUPLED, 4),
    }


def test_two_engines_without_a_trainer(tmp_path: Path) -> None:
    """Greedy tokens are no sample: the figures describe."""
    a = make_trace(tmp_path / "a", requests=[make_request(logprob=[-1.0, -1.0, -1.0], temperature=0.0)])
    b = make_trace(tmp_path / "b", requests=[make_request(logprob=[-0.5, -1.0, -2.0])], role="replay", parent=a)
    with connect(a, b) as session:
        found = impacts(prepared(session, ["r0"], {"c": [np.array([0.5, 0.0, 0.0])]}))
    before, after = [np.array([0.5, 0.0, -1.0])], [np.array([0.0, 0.0, -1.0])]
    assert figures(found, "c", MISMATCH) == near(mismatch(before), mismatch(after))
    assert figures(found, "c", DECOUPLED) == near(correction(before), correction(after))
    assert {each.mode: (each.assumed, each.descriptive) for each in found} == {
        MISMATCH: (False, True),
        DECOUPLED: (True, True),
    }


def test_a_token_that_a_cause_makes_impossible_agrees_without_it(tmp_path: Path) -> None:
    a = make_trace(tmp_path / "a", requests=[make_request(logprob=[-1.0, -1.0, -1.0])])
    b = make_trace(tmp_path / "b", requests=[make_request(logprob=[-np.inf, -0.5, -np.inf])], role="replay", parent=a)
    with connect(a, b) as session:
        found = impacts(
            prepared(session, ["r0"], {"c": [np.array([-np.inf, 0.5, 0.0])], "e": [np.array([0, 0, -np.inf])]})
        )
    assert figures(found, "c", MISMATCH)["k2_kl"] == (0.125, 0.0)
    assert figures(found, "c", MISMATCH)["ratio_oob_fraction"] == (1.0, pytest.approx(1 / 3))
    assert {each.name: each.num_tokens for each in found if each.mode == MISMATCH} == {
        "k2_kl": 1,
        "k3_kl": 1,
        "ratio_oob_fraction": 3,
        "effective_sample_size": 3,
    }
    # A sequence is one, whatever of it is finite.
    assert {each.num_sequences for each in found} == {1}
    assert figures(found, "c", DECOUPLED)["icepop_masked_fraction"] == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert figures(found, None, MISMATCH)["effective_sample_size"][1] == 1.0


def test_they_can_be_asked_for_again(made: Made) -> None:
    made.train("old")
    with connect(made.rollout, made.path) as session:
        first = impacts(prepared(session, made.names, {RAW: made.deltas[RAW]}))
        again = impacts(prepared(session, made.names, {RAW: made.deltas[RAW]}))
        assert [(one.cause, one.mode, one.name) for one in again] == [(one.cause, one.mode, one.name) for one in first]
        # Sums are in another order, as threads come to them.
        assert [one.before for one in again] == pytest.approx([one.before for one in first], rel=1e-12)
        assert [one.after for one in again] == pytest.approx([one.after for one in first], rel=1e-12)
        assert "_impact" not in session.views()


def test_a_real_pair() -> None:
    """vLLM in bf16 against transformers in fp32: half of d of the second half of each request is taken away."""
    with connect(ROLLOUT, FP32) as session:
        query = "SELECT request_id, output_index, d_processed FROM pairs WHERE d_processed IS NOT NULL ORDER BY ALL"
        rows = session.sql(query).rows()
        names = sorted({name for name, _, _ in rows})
        d = [np.full(1 + max(index for name, index, _ in rows if name == each), np.nan) for each in names]
        for name, index, value in rows:
            d[names.index(name)][index] = value
        deltas = [np.where(np.arange(len(each)) >= len(each) / 2, each / 2, 0) for each in d]
        found = impacts(prepared(session, names, {"half": [np.nan_to_num(each, neginf=-np.inf) for each in deltas]}))
    # Tokens that only one side's truncation excludes have d = -inf, and agree once that is taken away.
    after = [np.where(np.isinf(x) & (x == y), 0, x - y) for x, y in zip(d, deltas, strict=True)]
    known = [~np.isnan(each) for each in d]
    before, after = ([x[keep] for x, keep in zip(each, known, strict=True)] for each in (d, after))
    assert figures(found, "half", MISMATCH) == near(mismatch(before), mismatch(after, before))
    assert figures(found, "half", DECOUPLED) == near(correction(before), correction(after))
    of_all = [each for each in found if each.name not in ("k2_kl", "k3_kl")]
    assert {(each.num_tokens, each.num_sequences) for each in of_all} == {(len(rows), len(names))}
