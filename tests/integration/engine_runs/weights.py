"""Weights that change in the midst of requests, step by step, with books kept beside: weights.py MODEL OUT TRACE.

The books are this program's own: it knows which call came before which step, which tokens a step gave, and which
of them found their beginning in the prefix cache.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

import torch
from outputs import SHARED_PREFIX
from vllm import LLM, SamplingParams
from weights_extension import keep_weights_plain, register_transfer_engine, tensor_names

import tracekit

BLOCK = 128


class Books:
    """Steps an engine, and writes down what it should have recorded."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        self.engine = llm.llm_engine
        self.version, self.label, self.partial = 0, llm.get_weight_version(), False
        self.is_changed = False
        self.num_steps = 0
        self.requests: dict[str, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        # The weights behind each KV entry that the prefix cache may hold, by the tokens up to it.
        self.entries: dict[tuple[int, ...], int] = {}
        self.waiting: list[dict[str, Any]] = []
        self.checksums: list[dict[str, str]] = []

    def changed(self) -> None:
        self.is_changed = True

    def happened(self, kind: str, **attributes: Any) -> None:
        self.waiting.append({"kind": kind, **attributes})

    def add(self, name: str, prompt: list[int], num_tokens: int, **params: Any) -> None:
        sampling = SamplingParams(temperature=1.0, seed=len(name), max_tokens=num_tokens, ignore_eos=True, **params)
        self.engine.add_request(name, {"prompt_token_ids": prompt}, sampling)
        self.requests[name] = {
            "tokens": list(prompt),
            "num_prompt": len(prompt),
            "skips_cache": "prompt_logprobs" in params,
            "kv": [],
            "expected": [],
        }

    def forget_cache(self) -> None:
        """The cache was cleared and running requests were preempted: what they compute next, they compute anew."""
        self.entries.clear()
        for request in self.requests.values():
            request["kv"] = []

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step()

    def finish(self) -> None:
        while self.engine.has_unfinished_requests():
            self.step()

    def step(self) -> None:
        outputs = {output.request_id: output for output in self.engine.step()}
        if not outputs:
            return
        if self.is_changed:
            self.version, self.is_changed = self.version + 1, False
        if len(self.checksums) <= self.version:
            self.checksums.append(_checksums(self.llm))
        self.events += [{**event, "step": self.num_steps} for event in self.waiting]
        self.waiting = []
        for name, output in outputs.items():
            self._note(self.requests[name], output)
        self.num_steps += 1

    def _note(self, request: dict[str, Any], output: Any) -> None:
        tokens, kv = request["tokens"], request["kv"]
        if not kv and not request["skips_cache"]:
            # Computed from the end of what the cache holds; a block is found whole or not at all.
            kv += self._cached(tokens)
        request.setdefault("num_cached", len(kv))
        computed = range(len(kv), len(tokens))
        kv += [self.version] * len(computed)
        for position in computed:
            self.entries.setdefault(tuple(tokens[: position + 1]), self.version)
        new = list(output.outputs[0].token_ids)[len(tokens) - request["num_prompt"] :]
        assert len(new) == 1, (output.request_id, new)
        request["expected"].append(
            {
                "version": self.version,
                "label": self.label,
                "partial": self.partial,
                "kv": min(kv),
                "step": self.num_steps,
                "token": new[0],
            }
        )
        tokens += new
        if output.finished:
            spans = output.outputs[0].weight_versions or []
            request["engine_spans"] = [list(dataclasses.astuple(span)) for span in spans]
            request["engine_num_cached"] = output.num_cached_tokens

    def _cached(self, tokens: list[int]) -> list[int]:
        found: list[int] = []
        for end in range(BLOCK, len(tokens), BLOCK):
            block = [self.entries.get(tuple(tokens[: i + 1])) for i in range(end - BLOCK, end)]
            if None in block:
                break
            found += [version for version in block if version is not None]
        return found


def _everything(books: Books, model: str) -> None:
    llm, names = books.llm, tensor_names(model)
    prefix = llm.get_tokenizer().encode(SHARED_PREFIX)
    assert len(prefix) > 3 * BLOCK

    # A request whose fourth block is begun under the first weights and goes on under others.
    books.add("a", prefix[: 3 * BLOCK + 40], 100)
    books.steps(5)
    llm.collective_rpc("reload_weights")
    books.changed()
    books.steps(3)
    # It finds what the first weights wrote.
    books.add("b", [*prefix[: 2 * BLOCK], 5, 6, 7], 12)
    books.steps(2)

    # One update in as many calls as there are tensors, without a step in between; then with steps.
    for name in names:
        llm.collective_rpc("update_weight", args=(name, 1.01))
    books.changed()
    books.steps(2)
    for name in names[:3]:
        llm.collective_rpc("update_weight", args=(name, 0.98))
        books.changed()
        books.step()

    # Writes that pass by vLLM: by a method of an extension, by a function, by whoever has the model in hand.
    llm.collective_rpc("scale_in_place", args=(1.01,))
    books.changed()
    books.steps(2)
    llm.collective_rpc(_replace_a_norm)
    books.changed()
    books.step()
    with torch.no_grad():
        for parameter in _model(llm).parameters():
            parameter.mul_(0.99)
    books.changed()
    books.steps(2)
    # Nothing is written here, nor by an adapter's bookkeeping.
    assert llm.collective_rpc("look_at_weights")[0] > 1e6
    llm.collective_rpc(_write_nothing)
    books.step()
    books.finish()

    # The next turn of a conversation whose KV is of many versions.
    books.add("c", [*books.requests["a"]["tokens"], *prefix[:20]], 4)
    books.add("d", prefix[: BLOCK + 60], 4, prompt_logprobs=0)
    books.finish()

    # The cache is cleared, with requests running and then with none.
    books.add("e", [*prefix[: 2 * BLOCK], 8, 9], 12)
    books.steps(3)
    llm.collective_rpc("reload_weights")
    books.changed()
    books.step()
    books.add("f", [*prefix[: 2 * BLOCK], 10, 11], 6)
    books.step()
    assert llm.reset_prefix_cache(reset_running_requests=True)
    books.forget_cache()
    books.happened("preempted", request="f", by="cache_reset")
    books.happened("preempted", request="e", by="cache_reset")
    books.happened("cache_reset", reset_running_requests=True, success=True)
    books.steps(2)
    books.add("g", [*prefix[: 2 * BLOCK], 12], 3)
    books.finish()
    books.add("h", [*prefix[:BLOCK], 13], 2)
    books.finish()
    assert llm.reset_prefix_cache()
    books.forget_cache()
    books.happened("cache_reset", reset_running_requests=False, success=True)
    books.add("i", [*prefix[: 2 * BLOCK], 14], 20)
    books.steps(2)

    # The engine's own interface: opened, in two parts with steps between, finished with a label.
    llm.start_weight_update()
    books.partial = True
    books.steps(2)
    half = len(names) // 2
    llm.update_weights({"update_info": {"names": names[:half], "factor": 1.01}})
    books.changed()
    books.steps(2)
    llm.update_weights({"update_info": {"names": names[half:], "factor": 1.01}})
    llm.finish_weight_update("policy-9")
    books.changed()
    books.partial, books.label = False, "policy-9"
    books.steps(2)
    llm.update_weight_version("policy-9b")
    books.label = "policy-9b"
    books.step()

    # Paused with the request kept, and with the cache cleared.
    llm.sleep(level=0, mode="keep")
    books.happened("paused", mode="keep", clear_cache=False, sleep_level=0)
    llm.wake_up(tags=["scheduling"])
    books.happened("resumed")
    books.steps(2)
    books.finish()

    # What the caller says: in this process, and through vLLM.
    books.add("j", prefix[:30], 12)
    books.steps(2)
    assert tracekit.set_weight_version("mine") == 1
    books.label = "mine"
    books.step()
    tracekit.set_weight_version("written out of sight", llm, changed=True)
    books.changed()
    books.label = "written out of sight"
    books.step()
    assert llm.collective_rpc("tracekit_set_weight_version", args=("in parts",), kwargs={"partial": True}) == [True]
    books.label, books.partial = "in parts", True
    books.step()
    llm.collective_rpc("update_weight", args=(names[0], 1.0))
    books.changed()
    books.step()
    tracekit.set_weight_version(11, partial=False)
    books.changed()
    books.label, books.partial = "11", False
    books.finish()

    # No step follows.
    llm.collective_rpc("reload_weights")
    assert llm.reset_prefix_cache()
    books.happened("cache_reset", reset_running_requests=False, success=True)


def _model(llm: LLM) -> Any:
    return llm.llm_engine.model_executor.driver_worker.worker.model_runner.get_model()


def _checksums(llm: LLM) -> dict[str, str]:
    parts = {"head": _model(llm).lm_head, "embedding": _model(llm).model.embed_tokens}
    return {
        name: hashlib.sha256(part.weight.detach().view(torch.int16).numpy().tobytes()).hexdigest()
        for name, part in parts.items()
    }


def _replace_a_norm(worker: Any) -> None:
    norms = [p for name, p in worker.get_model().named_parameters() if name.endswith("layers.7.input_layernorm.weight")]
    norms[0].data = norms[0].data * 1.01


def _write_nothing(worker: Any) -> None:
    for parameter in worker.get_model().parameters():
        parameter.data[:0] = 0


def _round(llm: LLM) -> list[list[int]]:
    """Returns the tokens of some seeded requests, with weights that change in their midst, from a fresh start."""
    llm.collective_rpc("reload_weights")
    llm.reset_prefix_cache()
    tokens: dict[str, list[int]] = {}
    for i in range(8):
        sampling = SamplingParams(temperature=1.0, top_p=0.9, seed=i, max_tokens=24, ignore_eos=True)
        llm.llm_engine.add_request(f"round-{i}", f"Story number {i}: once upon a time", sampling)
    for step in range(24):
        if step == 10:
            llm.collective_rpc("scale_in_place", args=(1.03,))
        for output in llm.llm_engine.step():
            tokens[output.request_id] = list(output.outputs[0].token_ids)
    assert not llm.llm_engine.has_unfinished_requests()
    return [tokens[name] for name in sorted(tokens)]


def main() -> None:
    model, out, trace = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    register_transfer_engine("file")
    keep_weights_plain()
    llm = LLM(
        model,
        enforce_eager=True,
        max_model_len=1024,
        worker_extension_cls="weights_extension.Extension",
        weight_transfer_config={"backend": "file"},
    )
    report = {"rounds": [_round(llm)]}
    with tracekit.recording(trace, strict=True, checksums=True):
        books = Books(llm)
        _everything(books, model)
        report |= {"requests": books.requests, "events": books.events, "late": books.waiting}
        report |= {"checksums": books.checksums, "engine_checksums": llm.collective_rpc("compute_weight_checksums")}
    report["rounds"].append(_round(llm))
    with tracekit.recording(f"{trace}-round", strict=True):
        report["rounds"].append(_round(llm))
    report["num_tensors"] = len(tensor_names(model))
    out.write_text(json.dumps(report))


if __name__ == "__main__":
    main()
