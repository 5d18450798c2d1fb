"""The transformers backend on a real model, against one forward pass a sequence and NumPy in float64."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers

import reference
from factories import MadeRequest, make_request, make_trace
from replayed import scored
from tracekit.replay import replay
from tracekit.store import Trace

NUM_CANDIDATES = 10
TEXTS = [
    ("The capital of France is", " Paris, and the capital of Italy is Rome."),
    ("Q: What is the boiling point of water at sea level?\nA:", " 100"),
    ("def fibonacci(n):\n", "    if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)\n"),
    ("Once upon a time there was a small dog who lived by the sea. " * 6, "Every morning he ran to the beach."),
    ("1 2 3 4 5 6 7", " 8 9 10 11 12 13 14 15 16"),
    ("x", "\n"),
    ("My favourite fruits are apples, pears and", " bananas, because they are sweet and easy to eat on the way."),
]
PARAMS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.8, "top_p": 0.95},
    {"temperature": 1.0, "top_k": 40, "min_p": 0.02},
    {"temperature": 0.7, "top_p": 0.9, "top_k": 100, "repetition_penalty": 1.2},
    {"temperature": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.3},
    {"temperature": 0.0, "repetition_penalty": 1.1},
    {"temperature": 1.0},
]


@dataclass(frozen=True)
class Reference:
    """What plain forwards give for one request: logits [T, V] and final hidden states [T, H] before its tokens."""

    prompt: list[int]
    output: list[int]
    params: dict[str, Any]
    logits: npt.NDArray[np.float32]
    logits_bf16: npt.NDArray[np.float32]
    hidden_bf16: npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def head_weight(model_path: Path) -> npt.NDArray[np.float64]:
    model = transformers.AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.bfloat16)
    weight: npt.NDArray[np.float64] = model.get_output_embeddings().weight.detach().double().numpy()
    return weight


@pytest.fixture(scope="module")
def references(model_path: Path) -> dict[str, Reference]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_path)
    exact = transformers.AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
    rough = transformers.AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.bfloat16).eval()
    found = {}
    for index, ((prompt_text, output_text), params) in enumerate(zip(TEXTS, PARAMS, strict=True)):
        prompt, output = tokenizer(prompt_text)["input_ids"], tokenizer(output_text)["input_ids"]
        ids = torch.tensor([prompt + output])
        predicting = slice(len(prompt) - 1, -1)
        with torch.inference_mode():
            # Without the last token, and the head over the rows that predict output, as a replay does it: bf16 figures
            # depend on the shape of a product.
            rough_output = rough(ids[:, :-1], output_hidden_states=True, logits_to_keep=len(output))
            found[f"r{index}"] = Reference(
                prompt,
                output,
                params,
                exact(ids).logits[0, predicting].numpy(),
                rough_output.logits[0].float().numpy(),
                rough_output.hidden_states[-1][0, len(prompt) - 1 :].double().numpy(),
            )
    return found


@pytest.fixture(scope="module")
def parent(references: dict[str, Reference], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_trace(
        tmp_path_factory.mktemp("parent") / "parent.trace",
        requests=[make_parent_request(name, known) for name, known in references.items()],
    )


def make_parent_request(name: str, known: Reference) -> MadeRequest:
    """A recording that saw bf16 logits."""
    ids = [reference.candidates(row, NUM_CANDIDATES) for row in known.logits_bf16]
    logits = [row[row_ids].tolist() for row, row_ids in zip(known.logits_bf16, ids, strict=True)]
    return make_request(
        name,
        prompt=known.prompt,
        token_ids=known.output,
        tokens={"top_token_ids": ids, "top_logits": logits},
        **known.params,
    )


@pytest.fixture(scope="module")
def exact_replay(parent: Path, model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exact") / "fp32.trace"
    replay(parent, out, model=model_path, dtype="float32")
    return out


WAYS: list[dict[str, Any]] = [
    *({"attention": name, "batch_tokens": number} for name in ("sdpa", "eager") for number in (40, 256, 100_000)),
    {"mode": "decode", "attention": "sdpa", "batch_tokens": 40, "max_num_seqs": 3},
    {"mode": "decode", "attention": "eager", "batch_tokens": 40, "max_num_seqs": 2},
    {"mode": "decode", "attention": "sdpa"},
    {"mode": "decode", "attention": "eager"},
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: " ".join(map(str, way.values())))
def test_float32_equals_one_forward_a_sequence_in_every_way(
    way: dict[str, Any], references: dict[str, Reference], parent: Path, model_path: Path, tmp_path: Path
) -> None:
    replay(parent, tmp_path / "out", model=model_path, dtype="float32", **way)
    (run,) = Trace(tmp_path / "out").read("runs").to_pylist()
    assert (run["mode"], run["attention_backend"]) == (way.get("mode", "prefill"), way["attention"])
    found = scored(tmp_path / "out")
    assert found.keys() == references.keys()
    differences = []
    for name, known in references.items():
        assert [row["token_id"] for row in found[name]] == known.output
        for row, logits in zip(found[name], known.logits, strict=True):
            differences.append(abs(row["logprob"] - reference.log_softmax(logits)[row["token_id"]]))
    assert np.mean(differences) <= 1e-5
    assert np.max(differences) <= 5e-5


def test_ranks_candidates_and_parent_candidates_equal_numpy(
    references: dict[str, Reference], exact_replay: Path
) -> None:
    noise = 5e-4  # Of a float32 logit; ranks of entries closer than this may swap.
    for name, rows in scored(exact_replay).items():
        known = references[name]
        for row, logits, parent_logits in zip(rows, known.logits, known.logits_bf16, strict=True):
            own = logits[row["token_id"]]
            assert 1 + (logits > own + noise).sum() <= row["rank"] <= 1 + (logits > own - noise).sum()
            best = np.sort(logits)[::-1]
            assert row["top_logits"] == pytest.approx(best[:NUM_CANDIDATES], abs=noise)
            assert logits[row["top_token_ids"]] == pytest.approx(row["top_logits"], abs=noise)
            assert row["top1_margin"] == pytest.approx(best[0] - best[1], abs=2 * noise)
            parent_ids = reference.candidates(parent_logits, NUM_CANDIDATES)
            assert row["parent_top_logits"] == pytest.approx(logits[parent_ids], abs=noise)
            logprobs = reference.log_softmax(logits)
            assert row["entropy"] == pytest.approx(-(np.exp(logprobs) * logprobs).sum(), abs=1e-4)


def test_processed_columns_equal_numpy(references: dict[str, Reference], exact_replay: Path) -> None:
    num_compared = 0
    for name, rows in scored(exact_replay).items():
        known = references[name]
        for index, (row, logits) in enumerate(zip(rows, known.logits, strict=True)):
            logprobs, kept_count, kept_mass = reference.processed(
                logits, known.params, known.prompt, known.output[:index]
            )
            # A token at the very edge of a truncation may fall on either side of it.
            assert abs(row["kept_count"] - kept_count) <= max(1, kept_count // 500)
            assert row["kept_mass"] == pytest.approx(kept_mass, abs=2e-3)
            expected = logprobs[row["token_id"]]
            if row["kept_count"] == kept_count:
                assert row["processed_logprob"] == pytest.approx(expected, abs=1e-4)
                num_compared += np.isfinite(expected)
    assert num_compared > 50


@pytest.mark.parametrize("way", [WAYS[1], WAYS[4], WAYS[6], WAYS[8]], ids=lambda way: " ".join(map(str, way.values())))
def test_bfloat16_is_within_bfloat16_noise(
    way: dict[str, Any], references: dict[str, Reference], parent: Path, model_path: Path, tmp_path: Path
) -> None:
    replay(parent, tmp_path / "out", model=model_path, dtype="bfloat16", **way)
    to_same, to_exact = [], []
    for name, rows in scored(tmp_path / "out").items():
        known = references[name]
        for row, logits_bf16, logits in zip(rows, known.logits_bf16, known.logits, strict=True):
            assert float(torch.tensor(row["logit"]).bfloat16()) == row["logit"]
            to_same.append(abs(row["logprob"] - reference.log_softmax(logits_bf16)[row["token_id"]]))
            to_exact.append(abs(row["logprob"] - reference.log_softmax(logits)[row["token_id"]]))
    assert np.mean(to_same) < 0.05
    assert 1e-4 < np.mean(to_exact) < 0.1


def test_float32_head_over_bfloat16_body_equals_a_float64_product(
    references: dict[str, Reference],
    head_weight: npt.NDArray[np.float64],
    parent: Path,
    model_path: Path,
    tmp_path: Path,
) -> None:
    to_product, to_bf16_head = [], []
    for name, known in references.items():
        # One sequence a replay, so that the forwards have the reference's shapes.
        out = tmp_path / name
        replay(parent, out, model=model_path, only=[("run", name)], dtype="bfloat16", head_dtype="float32")
        rows = scored(out)[name]
        product = known.hidden_bf16 @ head_weight.T
        for row, logits, logits_bf16 in zip(rows, product, known.logits_bf16, strict=True):
            to_product.append(abs(row["logprob"] - reference.log_softmax(logits)[row["token_id"]]))
            to_bf16_head.append(abs(row["logprob"] - reference.log_softmax(logits_bf16)[row["token_id"]]))
    assert np.max(to_product) < 5e-5
    assert np.median(to_bf16_head) > 1e-3


def test_slices_of_the_head_change_nothing(
    exact_replay: Path, parent: Path, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracekit.replay.scoring.slice_rows", lambda _: 7)
    replay(parent, tmp_path / "out", model=model_path, dtype="float32")
    whole, sliced = scored(exact_replay), scored(tmp_path / "out")
    assert whole.keys() == sliced.keys()
    for name, rows in whole.items():
        for row, other in zip(rows, sliced[name], strict=True):
            assert row["output_index"] == other["output_index"]
            assert row["logprob"] == pytest.approx(other["logprob"], abs=5e-5)
            assert row["processed_logprob"] == pytest.approx(other["processed_logprob"], abs=5e-5)


def test_a_replay_of_a_replay_has_the_same_bits(exact_replay: Path, model_path: Path, tmp_path: Path) -> None:
    replay(exact_replay, tmp_path / "again", model=model_path, dtype="float32")
    assert scored(tmp_path / "again").keys() == scored(exact_replay).keys()
    for name, rows in scored(tmp_path / "again").items():
        for row, before in zip(rows, scored(exact_replay)[name], strict=True):
            assert row["parent_top_logits"] == row["top_logits"] == before["top_logits"]
            assert row["logprob"] == before["logprob"]


def test_hidden_states_and_logits_are_kept_exactly(
    references: dict[str, Reference], parent: Path, model_path: Path, tmp_path: Path
) -> None:
    for name, known in references.items():
        replay(
            *(parent, tmp_path / name),
            model=model_path,
            only=[("run", name)],
            dtype="bfloat16",
            hidden=True,
            logits=True,
        )
        for table, expected in (("hidden", known.hidden_bf16), ("logits", known.logits_bf16)):
            rows = Trace(tmp_path / name).read(table).to_pylist()
            found = {row["output_index"]: row[table] for row in rows}
            np.testing.assert_array_equal(np.array([found[i] for i in range(len(known.output))]), expected)
            assert {row["source_dtype"] for row in rows} == {"bfloat16"}


def test_the_head_alone_gives_the_same_logits(
    references: dict[str, Reference],
    head_weight: npt.NDArray[np.float64],
    parent: Path,
    model_path: Path,
    tmp_path: Path,
) -> None:
    """From the hidden states of a bf16 replay: in bf16 its logits bit for bit, in fp32 a float64 product's."""
    one = [("run", "r3")]
    replay(parent, tmp_path / "whole", model=model_path, only=one, dtype="bfloat16", hidden=True, logits=True)
    settings: dict[str, Any] = {"backend": "head", "model": model_path, "logits": True}
    replay(tmp_path / "whole", tmp_path / "bf16", head_dtype="bfloat16", **settings)
    replay(tmp_path / "whole", tmp_path / "fp32", head_dtype="float32", **settings)
    whole, bf16, fp32 = (
        np.array([row["logits"] for row in sorted(Trace(tmp_path / name).read("logits").to_pylist(), key=_place)])
        for name in ("whole", "bf16", "fp32")
    )
    np.testing.assert_array_equal(bf16, whole)
    np.testing.assert_allclose(fp32, references["r3"].hidden_bf16 @ head_weight.T, atol=1e-4)


def _place(row: dict[str, Any]) -> int:
    place: int = row["output_index"]
    return place
