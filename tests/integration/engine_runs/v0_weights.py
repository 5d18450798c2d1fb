"""Weights that change in the midst of V0's requests, with books kept beside: v0_weights.py MODEL OUT TRACE KIND.

The books are this program's own: it knows which call came before which step, and keeps the version of each single
KV entry, in blocks that requests share as V0's prefix cache has them share. KIND is 'cached', an engine with a prefix
cache; or 'small', one without, whose cache is small, so that requests are preempted, and whose prompts are computed
in chunks.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import ipex_stand_in
import torch
import weights_extension
from outputs import SHARED_PREFIX
from vllm import LLM, SamplingParams
from weights_extension import tensor_names, tensor_of

import tracekit

BLOCK = 16


class Extension(weights_extension.Extension):
    """V0's worker for CPUs cannot sleep; the engine around it can."""

    def load_checkpoint(self, factor: float) -> None:
        worker: Any = self
        model = worker.model_config.model
        names = tensor_names(model)
        worker.model_runner.model.load_weights((name, tensor_of(model, name, factor)) for name in names)

    def sleep(self, level: int) -> None:
        pass

    def wake_up(self, tags: list[str] | None) -> None:
        pass


class Block:
    """A block of the KV cache: the weights behind each entry, and the step that it is from."""

    def __init__(self, step: int) -> None:
        self.versions: dict[int, int] = {}
        self.step = step


class Books:
    """Steps an engine, and writes down what it should have recorded."""

    def __init__(self, llm: LLM, *, shares: bool) -> None:
        self.llm = llm
        self.engine = llm.llm_engine
        self.shares = shares
        self.version, self.label, self.partial = 0, None, False
        self.is_changed = False
        self.num_steps = 0
        self.requests: dict[str, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        # Full blocks by the tokens up to their end.
        self.cache: dict[tuple[int, ...], Block] = {}
        self.waiting: list[dict[str, Any]] = []
        self.checksums: list[dict[str, str]] = []
        # Of prompts: computed in each step, as the books have it and as the attention saw it.
        self.num_computed: list[tuple[int, int]] = []

    def changed(self) -> None:
        self.is_changed = True

    def happened(self, kind: str, **attributes: Any) -> None:
        self.waiting.append({"kind": kind, **attributes})

    def add(self, name: str, prompt: list[int], num_tokens: int, **params: Any) -> None:
        params = {"temperature": 1.0, "seed": len(name)} | params
        sampling = SamplingParams(max_tokens=num_tokens, ignore_eos=True, **params)
        self.engine.add_request(name, {"prompt_token_ids": prompt}, sampling)
        self.requests[name] = {"tokens": list(prompt), "num_prompt": len(prompt), "computed": 0, "expected": []}
        self.requests[name]["blocks"] = []

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step()

    def finish(self) -> None:
        while self.engine.has_unfinished_requests():
            self.step()

    def step(self) -> None:
        ipex_stand_in.num_computed.clear()
        outputs = {output.request_id: output for output in self.engine.step()}
        assert outputs
        if self.is_changed:
            self.version, self.is_changed = self.version + 1, False
        if len(self.checksums) <= self.version:
            self.checksums.append(_checksums(self.llm))
        for group in reversed(self.engine.scheduler[0].waiting):
            request = self.requests[group.request_id]
            if request["computed"]:
                # Preempted: what it had is given up.
                request["computed"], request["blocks"] = 0, []
                self.happened("preempted", request=group.request_id)
        self.events += [{**event, "step": self.num_steps} for event in self.waiting]
        self.waiting = []
        counts = [self._compute(self.requests[name], output) for name, output in outputs.items()]
        for name, output in outputs.items():
            self._note(self.requests[name], output)
        if ipex_stand_in.num_computed:
            self.num_computed.append((sum(counts), ipex_stand_in.num_computed[0]))
        self.num_steps += 1

    def _compute(self, request: dict[str, Any], output: Any) -> int:
        """Writes the KV of one request's step; returns how many tokens of a prompt that were."""
        tokens, blocks = request["tokens"], request["blocks"]
        is_prompt = request["computed"] < len(tokens) - 1 or not blocks
        first = request["computed"] if blocks else self._admit(request)
        end = len(tokens) if _new_token(request, output) is not None else self._chunk_end(output.request_id)
        for position in range(first, end):
            if position // BLOCK == len(blocks):
                blocks.append(Block(self.num_steps))
            if self.shares and not is_prompt and (position + 1) % BLOCK == 0:
                # The block is full: another of the same tokens takes its place.
                key = tuple(tokens[: position + 1])
                blocks[-1] = self.cache.setdefault(key, blocks[-1])
            blocks[position // BLOCK].versions[position % BLOCK] = self.version
        request["computed"] = end
        return end - first if is_prompt else 0

    def _admit(self, request: dict[str, Any]) -> int:
        """Gives a request the blocks of its tokens; returns how many of them need not be computed."""
        tokens, blocks = request["tokens"], request["blocks"]
        num_cached = 0
        for end in range(BLOCK, len(tokens) + 1, BLOCK):
            block = Block(self.num_steps)
            if self.shares:
                block = self.cache.setdefault(tuple(tokens[:end]), block)
            num_cached += BLOCK * (block.step < self.num_steps)
            blocks.append(block)
        request.setdefault("num_cached", num_cached)
        # The logits of the last one are wanted in any case.
        return min(num_cached, len(tokens) - 1)

    def _chunk_end(self, name: str) -> int:
        (sequence,) = next(g for g in self.engine.scheduler[0].running if g.request_id == name).seqs
        return int(sequence.data.get_num_computed_tokens())

    def _note(self, request: dict[str, Any], output: Any) -> None:
        token = _new_token(request, output)
        if token is not None:
            request["expected"].append(
                {
                    "version": self.version,
                    "label": self.label,
                    "partial": self.partial,
                    "kv": min(version for block in request["blocks"] for version in block.versions.values()),
                    "step": self.num_steps,
                    "token": token,
                }
            )
            request["tokens"].append(token)

    def report(self) -> dict[str, Any]:
        kept = ("tokens", "num_prompt", "num_cached", "expected")
        requests = {name: {key: request[key] for key in kept} for name, request in self.requests.items()}
        return {
            "requests": requests,
            "events": self.events,
            "late": self.waiting,
            "checksums": self.checksums,
            "num_computed": self.num_computed,
        }


def _new_token(request: dict[str, Any], output: Any) -> int | None:
    new = list(output.outputs[0].token_ids)[len(request["tokens"]) - request["num_prompt"] :]
    assert len(new) <= 1, (output.request_id, new)
    return new[0] if new else None


def _everything(books: Books, model: str) -> None:
    llm, names = books.llm, tensor_names(model)
    prefix = llm.get_tokenizer().encode(SHARED_PREFIX)

    # A request with a block that is begun under the first weights and goes on under others.
    books.add("a", prefix[: 3 * BLOCK + 10], 70)
    books.steps(3)
    llm.collective_rpc("load_checkpoint", args=(1.0,))
    books.changed()
    books.steps(3)
    # It finds what the first weights wrote; all of it, even, so that its last token is computed once more.
    books.add("b", [*prefix[: 2 * BLOCK], 5, 6, 7], 12)
    books.add("b-whole", prefix[: 3 * BLOCK], 12)
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

    # Writes that pass by vLLM: by a method of an extension, by functions, by whoever has the model in hand.
    llm.collective_rpc("scale_in_place", args=(1.01,))
    books.changed()
    books.steps(2)
    llm.collective_rpc(_replace_a_norm)
    books.changed()
    books.step()
    llm.apply_model(_scale_out_of_sight)
    books.changed()
    books.step()
    with torch.no_grad():
        for parameter in _model(llm).parameters():
            parameter.mul_(0.99)
    books.changed()
    books.steps(2)
    # Nothing is written here.
    assert llm.collective_rpc("look_at_weights")[0] > 1e6
    books.step()

    # V0 clears no cache while a request runs: the KV of older weights stays.
    assert not llm.reset_prefix_cache()
    books.happened("cache_reset", success=False)
    books.steps(2)
    books.finish()

    # The next turn of a conversation whose KV is of many versions; then the cache is cleared.
    books.add("c", [*books.requests["a"]["tokens"], *prefix[:20]], 4)
    # V0 cannot score a prompt whose beginning it finds in the cache.
    books.add("d", prefix[5 * BLOCK : 8 * BLOCK + 5], 4, prompt_logprobs=0)
    books.finish()
    assert llm.reset_prefix_cache()
    books.cache.clear()
    books.happened("cache_reset", success=True)
    books.add("e", prefix[: 3 * BLOCK + 10], 20)
    books.steps(2)

    # What the caller says: in this process, and through vLLM.
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

    # Asleep and awake again; V0 clears the cache before.
    llm.llm_engine.vllm_config.model_config.enable_sleep_mode = True
    llm.sleep(level=1)
    books.cache.clear()
    books.happened("cache_reset", success=True)
    books.happened("paused", sleep_level=1)
    llm.wake_up()
    books.happened("resumed")

    # Two requests that generate the same: a block that the later one fills is given up for that of the earlier one.
    books.add("f", prefix[:10], 24, temperature=0.0)
    books.finish()
    tracekit.set_weight_version("f is over", changed=True)
    books.changed()
    books.label = "f is over"
    books.add("f-again", prefix[:10], 24, temperature=0.0)
    books.finish()
    # And a block of newer weights takes the place of the only one of older weights.
    assert llm.reset_prefix_cache()
    books.cache.clear()
    books.happened("cache_reset", success=True)
    books.add("g", prefix[:10], 24, temperature=0.0)
    books.steps(3)
    tracekit.set_weight_version("g goes on", changed=True)
    books.changed()
    books.label = "g goes on"
    books.add("g-known", [*books.requests["f"]["tokens"][:18]], 2, temperature=0.0)
    books.finish()

    # No step follows.
    llm.collective_rpc("update_weight", args=(names[0], 1.0))
    assert llm.reset_prefix_cache()
    books.happened("cache_reset", success=True)


def _short_of_blocks(books: Books) -> None:
    """Requests that grow until the cache is full, while weights change."""
    prefix = books.llm.get_tokenizer().encode(SHARED_PREFIX)
    for i in range(4):
        books.add(f"r{i}", prefix[i : i + 5 * BLOCK + i], 50)
    for _ in range(12):
        books.steps(3)
        books.llm.collective_rpc("scale_in_place", args=(1.005,))
        books.changed()
    books.finish()


def _model(llm: LLM) -> Any:
    return llm.llm_engine.model_executor.driver_worker.worker.get_model()


def _checksums(llm: LLM) -> dict[str, str]:
    parts = {"head": _model(llm).lm_head, "embedding": _model(llm).model.embed_tokens}
    return {
        name: hashlib.sha256(part.weight.detach().view(torch.int16).numpy().tobytes()).hexdigest()
        for name, part in parts.items()
    }


def _replace_a_norm(worker: Any) -> None:
    norms = [p for name, p in worker.get_model().named_parameters() if name.endswith("layers.7.input_layernorm.weight")]
    norms[0].data = norms[0].data * 1.01


def _scale_out_of_sight(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(0.99)


def _round(llm: LLM) -> list[list[int]]:
    """Returns the tokens of some seeded requests, with weights that change in their midst, from a fresh start."""
    llm.collective_rpc("load_checkpoint", args=(1.0,))
    llm.reset_prefix_cache()
    tokens: dict[str, list[int]] = {}
    for i in range(4):
        sampling = SamplingParams(temperature=1.0, top_p=0.9, seed=i, max_tokens=12, ignore_eos=True)
        llm.llm_engine.add_request(f"round-{i}", f"Story number {i}: once upon a time", sampling)
    for step in range(12):
        if step == 6:
            llm.collective_rpc("scale_in_place", args=(1.03,))
        for output in llm.llm_engine.step():
            tokens[output.request_id] = list(output.outputs[0].token_ids)
    assert not llm.llm_engine.has_unfinished_requests()
    return [tokens[name] for name in sorted(tokens)]


def _make(model: str, **options: Any) -> LLM:
    llm = LLM(model, enforce_eager=True, worker_extension_cls="v0_weights.Extension", **options)
    ipex_stand_in.install()
    return llm


def _cached(model: str, trace: str) -> dict[str, Any]:
    llm = _make(model, max_model_len=512, enable_prefix_caching=True)
    rounds = [_round(llm)]
    with tracekit.recording(trace, strict=True, checksums=True):
        books = Books(llm, shares=True)
        _everything(books, model)
    rounds.append(_round(llm))
    with tracekit.recording(f"{trace}-round", strict=True):
        rounds.append(_round(llm))
    return books.report() | {"rounds": rounds, "names": tensor_names(model)}


def _small(model: str, trace: str) -> dict[str, Any]:
    with tracekit.recording(trace, strict=True):
        chunks = {"enable_chunked_prefill": True, "max_num_batched_tokens": 64, "max_num_seqs": 8}
        llm = _make(model, max_model_len=256, num_gpu_blocks_override=26, **chunks)
        books = Books(llm, shares=False)
        _short_of_blocks(books)
    return books.report() | {"num_preemptions": llm.llm_engine.scheduler[0].num_cumulative_preemption}


def main() -> None:
    model, out, trace, kind = sys.argv[1:]
    report = {"cached": _cached, "small": _small}[kind](model, trace)
    Path(out).write_text(json.dumps(report))


if __name__ == "__main__":
    main()
