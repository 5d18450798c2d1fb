"""The training loop in docs/trainers.md, run with a tiny model, against NumPy in float64."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from factories import make_request, make_trace
from tiny_model import make_tiny_llama
from tracekit import connect

PAGE = Path(__file__).parents[2] / "docs" / "trainers.md"
SEQUENCES = {"a": ([3, 1], [4, 1, 5]), "b": ([9, 2, 6], [5, 3]), "c": ([5], [8, 9, 7, 9]), "d": ([3, 2, 3], [8])}
BATCHES = [["a", "b"], ["c", "d"]]
TEMPERATURE = 0.8


def batch(names: list[str]) -> dict[str, Any]:
    length = max(len(prompt) + len(output) for prompt, output in (SEQUENCES[name] for name in names))
    ids, attention, output_mask = (torch.zeros(len(names), length, dtype=torch.long) for _ in range(3))
    for row, name in enumerate(names):
        prompt, output = SEQUENCES[name]
        end = len(prompt) + len(output)
        ids[row, :end] = torch.tensor(prompt + output)
        attention[row, :end] = 1
        output_mask[row, len(prompt) : end] = 1
    advantages = torch.linspace(-1, 1, len(names))
    columns = {"input_ids": ids, "attention_mask": attention, "output_mask": output_mask, "advantages": advantages}
    return {"request_ids": names, **columns}


def expected(model: Any, name: str) -> np.ndarray:
    prompt, output = SEQUENCES[name]
    with torch.no_grad():
        logits = model(torch.tensor([prompt + output])).logits[0, len(prompt) - 1 : -1].double().numpy() / TEMPERATURE
    chosen = logits[np.arange(len(output)), output]
    largest = logits.max(axis=1)
    return np.asarray(chosen - largest - np.log(np.exp(logits - largest[:, None]).sum(axis=1)))


def test_the_loop_of_the_page(tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(make_tiny_llama(tmp_path / "model"))
    before = {name: expected(model, name) for name in SEQUENCES}
    requests = [
        make_request(
            name,
            prompt=prompt,
            token_ids=output,
            temperature=TEMPERATURE,
            logprob=before[name].astype(np.float32),
            tokens={"weight_version": [0] * len(output)},
        )
        for name, (prompt, output) in SEQUENCES.items()
    ]
    rollout = make_trace(tmp_path / "rollout", requests=requests)
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(code, names)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    after: dict[str, np.ndarray] = {}

    def batches() -> Any:
        yield batch(BATCHES[0])
        # Here one step was made.
        after.update({name: expected(model, name) for name in BATCHES[1]})
        yield batch(BATCHES[1])

    names["train"](model, optimizer, batches(), rollout, tmp_path / "trainer")
    with connect(rollout, tmp_path / "trainer") as session:
        query = "SELECT request_id, output_index, b_processed_logprob, b_weight_version, b_advantage FROM pairs"
        rows = session.sql(query).rows()
        lags = {row["lag"]: row for row in session.sql("FROM staleness_by_lag").dicts()}
    assert len(rows) == sum(len(output) for _, output in SEQUENCES.values())
    for name, index, logprob, version, advantage in rows:
        step = int(name in BATCHES[1])
        assert logprob == pytest.approx((before, after)[step][name][index], abs=2e-6)
        assert (version, advantage) == (step, -1.0 if name in "ac" else 1.0)
    assert lags[0]["logprob_abs_diff_max"] < 2e-6
    d = np.concatenate([after[name] - before[name] for name in BATCHES[1]])
    assert lags[1]["k3_kl"] == pytest.approx(np.mean(np.exp(d) - 1 - d), rel=1e-3)
    assert lags[1]["k3_kl"] > 1e-4


def test_the_page_tells_of_every_importer() -> None:
    from tracekit.trainers.importers import importer_names

    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in importer_names() if f"| `{name}` |" not in text] == []
