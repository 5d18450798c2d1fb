"""LoRA adapters in the hf backend, against one forward pass a sequence with peft's own model."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import peft
import pytest
import safetensors.torch
import torch
import transformers

import reference
from factories import make_request, make_trace
from replayed import scored
from tiny_model import make_tiny_llama
from tracekit.cli.main import main
from tracekit.errors import ConfigError, ModelError, OutputExistsError
from tracekit.replay import Progress, driver, replay
from tracekit.store import Trace

pytestmark = pytest.mark.usefixtures("one_thread")

# The second one's name is no name of a module.
ADAPTERS: dict[str, dict[str, Any]] = {
    "sql": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "chat-v1.2": {"r": 2, "lora_alpha": 6, "target_modules": ["o_proj", "up_proj", "down_proj"]},
}
ON_THE_HEAD: dict[str, dict[str, Any]] = {
    "head": {"r": 4, "target_modules": ["k_proj", "lm_head"]},
    "embedding": {"r": 4, "target_modules": ["embed_tokens"]},
    "whole": {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
}
LORAS = (None, "sql", "chat-v1.2", "sql", None, "chat-v1.2", "sql")
LENGTHS = [(3, 5), (9, 2), (1, 7), (4, 4), (6, 1), (2, 8), (12, 3)]


def make_adapter(model: Path, folder: Path, *, kind: type = peft.LoraConfig, seed: int = 0, **settings: Any) -> Path:
    """Saves an adapter all of whose weights are random."""
    base = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    torch.manual_seed(seed)
    made = peft.get_peft_model(base, kind(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: make_adapter(tiny_model, folder / name, seed=seed, **settings)
        for seed, (name, settings) in enumerate({**ADAPTERS, **ON_THE_HEAD}.items())
    }


def make_parent(path: Path, loras: tuple[str | None, ...] = LORAS) -> Path:
    random = np.random.default_rng(3)
    requests = []
    for number, (lora, lengths) in enumerate(zip(loras, LENGTHS, strict=True)):
        prompt, output = (random.integers(0, 98, length).tolist() for length in lengths)
        requests.append(make_request(f"r{number}", prompt=prompt, token_ids=output, lora=lora, lora_version="7"))
    return make_trace(path, requests=requests)


def given(adapters: dict[str, Path], names: Iterable[str] = ADAPTERS) -> tuple[str, ...]:
    return tuple(f"{name}={adapters[name]}" for name in names)


def expected(parent: Path, model: Path, adapters: dict[str, Path]) -> dict[str, npt.NDArray[np.float64]]:
    """Each request's logits [T, V], from a model of its own."""
    found = {}
    for row in Trace(parent).read("requests").to_pylist():
        base = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        whole = base if row["lora"] is None else peft.PeftModel.from_pretrained(base, adapters[row["lora"]]).eval()
        output = [token["token_id"] for token in scored(parent)[row["request_id"]]]
        with torch.inference_mode():
            logits = whole(input_ids=torch.tensor([row["prompt_token_ids"] + output])).logits[0]
        found[row["request_id"]] = logits[len(row["prompt_token_ids"]) - 1 : -1].double().numpy()
    return found


def differences(out: Path, logits: dict[str, npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """How far each token's logprob is from that of these logits."""
    found = scored(out)
    assert found.keys() == logits.keys()
    return np.array(
        [
            abs(row["logprob"] - reference.log_softmax(row_V)[row["token_id"]])
            for name, rows in found.items()
            for row, row_V in zip(rows, logits[name], strict=True)
        ]
    )


WAYS: list[dict[str, Any]] = [
    {"batch_tokens": 1000},
    {"batch_tokens": 5, "attention": "eager"},
    {"mode": "decode", "max_num_seqs": 2},
    {"mode": "decode", "batch_tokens": 4},
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: " ".join(map(str, way.values())))
def test_each_request_is_scored_with_its_adapter(
    way: dict[str, Any], tiny_model: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    parent = make_parent(tmp_path / "parent")
    logits = expected(parent, tiny_model, adapters)
    replay(parent, tmp_path / "out", model=tiny_model, lora=given(adapters), **way)
    found = differences(tmp_path / "out", logits)
    assert found.mean() <= 1e-5
    assert found.max() <= 5e-5
    # An adapter forgotten, or another's, would not pass for the right one.
    make_parent(tmp_path / "plain", (None,) * len(LORAS))
    assert differences(tmp_path / "out", expected(tmp_path / "plain", tiny_model, adapters)).mean() > 1e-2
    rows = {row["request_id"]: row for row in Trace(tmp_path / "out").read("requests").to_pylist()}
    assert tuple(rows[f"r{number}"]["lora"] for number in range(len(LORAS))) == LORAS
    assert {row["lora_version"] for row in rows.values()} == {None}


@pytest.mark.parametrize("mode", ["prefill", "decode"])
@pytest.mark.parametrize("names", [("head", "embedding", "sql"), ("whole", "sql")], ids="-".join)
def test_adapters_of_head_and_embedding(
    names: tuple[str, ...], mode: str, tiny_model: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    parent = make_parent(tmp_path / "parent", (names[0], "sql", None, names[1], names[0], "sql", None))
    replay(parent, tmp_path / "out", model=tiny_model, lora=given(adapters, names), mode=mode)
    found = differences(tmp_path / "out", expected(parent, tiny_model, adapters))
    assert found.mean() <= 1e-5
    assert found.max() <= 5e-5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_base_model_is_what_it_is_without_adapters(
    dtype: str, tiny_model: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    plain = make_parent(tmp_path / "plain", (None,) * len(LORAS))
    named = make_parent(tmp_path / "named", ("sql", "other", "sql", "other", "sql", "other", "sql"))
    settings: dict[str, Any] = {"model": tiny_model, "dtype": dtype, "logits": True}
    replay(plain, tmp_path / "without", **settings)
    replay(plain, tmp_path / "with", lora=given(adapters), **settings)
    loaded = (f"unused={adapters['sql']}", f"whole={adapters['whole']}")
    replay(named, tmp_path / "on-purpose", lora=("sql=base", "other=base", *loaded), **settings)

    def logits_of(name: str) -> dict[tuple[str, int], list[float]]:
        rows = Trace(tmp_path / name).read("logits").to_pylist()
        return {(row["request_id"], row["output_index"]): row["logits"] for row in rows}

    assert logits_of("with") == logits_of("on-purpose") == logits_of("without")
    assert {row["lora"] for row in Trace(tmp_path / "on-purpose").read("requests").to_pylist()} == {None}


def test_bfloat16_is_within_its_noise(tiny_model: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    parent = make_parent(tmp_path / "parent")
    replay(parent, tmp_path / "out", model=tiny_model, lora=given(adapters), dtype="bfloat16")
    found = differences(tmp_path / "out", expected(parent, tiny_model, adapters))
    assert 1e-4 < found.mean() < 0.02


def test_what_does_not_fit_is_an_error_in_one_line(tiny_model: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    parent = make_parent(tmp_path / "parent", ("sql",) * len(LORAS))
    wide = make_tiny_llama(tmp_path / "wide", num_key_value_heads=2)
    deep = make_tiny_llama(tmp_path / "deep", num_hidden_layers=3)
    q_proj = {"target_modules": ["q_proj"]}
    biased = make_tiny_llama(tmp_path / "biased", attention_bias=True)
    folders = {
        "wide": make_adapter(wide, tmp_path / "of-wide", target_modules=["v_proj"]),
        "deep": make_adapter(deep, tmp_path / "of-deep", **q_proj),
        "bias": make_adapter(biased, tmp_path / "of-biased", bias="all", **q_proj),
        "pissa": make_adapter(tiny_model, tmp_path / "pissa", init_lora_weights="pissa", r=2, **q_proj),
        "alora": make_adapter(tiny_model, tmp_path / "alora", alora_invocation_tokens=[5, 6], **q_proj),
        "ia3": make_adapter(
            tiny_model, tmp_path / "ia3", kind=peft.IA3Config, feedforward_modules=[], target_modules=["v_proj"]
        ),
        "hollow": shutil.copytree(adapters["sql"], tmp_path / "hollow"),
    }
    tensors = safetensors.torch.load_file(folders["hollow"] / "adapter_model.safetensors")
    del tensors[next(iter(tensors))]
    safetensors.torch.save_file(tensors, folders["hollow"] / "adapter_model.safetensors")
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ConfigError, r"request 'r\d' .* adapter 'sql', which is not given; add --lora sql=PATH, or --lora sql=b", {}),
        (ConfigError, "add --lora sql=PATH", {"lora": (f"chat={adapters['sql']}",)}),
        (ConfigError, "lora 'sql' is not of the kind NAME=PATH", {"lora": ("sql",)}),
        (ConfigError, "lora 'a' is given twice", {"lora": ("a=x", "a=y")}),
        (ModelError, "nowhere is no folder of a LoRA adapter", {"lora": (f"sql={tmp_path / 'nowhere'}",)}),
        (ModelError, "of-wide cannot be loaded as a LoRA adapter of the model: .*size mismatch", {"lora": "wide"}),
        (ModelError, r"of-deep is no LoRA adapter of this model: \S*layers\.2\.\S* is missing", {"lora": "deep"}),
        (
            ModelError,
            "whole cannot be loaded as a LoRA adapter of the model beside those before it",
            {"lora": (f"a={adapters['head']}", f"sql={adapters['whole']}")},
        ),
        (ModelError, "hollow is no LoRA adapter of this model: .* one of 1 such", {"lora": "hollow"}),
        (ModelError, "ia3 is an adapter of a kind that is not known", {"lora": "ia3"}),
        (ModelError, "alora is an adapter of a kind that is not known", {"lora": "alora"}),
        (ModelError, "pissa changes weights of the base model itself", {"lora": "pissa"}),
        (ModelError, "of-biased changes weights of the base model", {"lora": "bias", "model": biased}),
        (
            ModelError,
            "head is no plain linear layer but peft.Linear, so its dtypes are fixed; leave out --head-dtype",
            {"lora": (f"sql={adapters['head']}",), "head_dtype": "bfloat16"},
        ),
        (
            ConfigError,
            "lora and weights-schedule cannot be combined",
            {
                "lora": ("sql=base",),
                "model": None,
                "weights": (f"0={tiny_model}",),
                "weights_schedule": "recorded",
                "mode": "decode",
            },
        ),
    ]
    for kind, message, settings in cases:
        if (name := settings.get("lora")) in folders:
            settings["lora"] = (f"sql={folders[name]}",)
        with pytest.raises(kind, match=message) as info:
            replay(parent, tmp_path / "out", **{"model": tiny_model, **settings})
        assert "\n" not in str(info.value)
        assert not list(tmp_path.glob("out*"))


def test_command(
    tiny_model: Path, adapters: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = make_parent(tmp_path / "parent")
    arguments = ["replay", str(parent), "-o", str(tmp_path / "out"), "--model", str(tiny_model)]
    one, other = (f"--lora={name}={adapters[name]}" for name in ADAPTERS)
    assert main([*arguments, one]) == 2
    error = capsys.readouterr().err
    assert error.startswith("tracekit: error: request 'r2' was sampled with the LoRA adapter 'chat-v1.2'")
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("out*"))
    assert main([*arguments, one, other]) == 0
    assert differences(tmp_path / "out", expected(parent, tiny_model, adapters)).max() <= 5e-5


def test_without_peft(
    tiny_model: Path,
    adapters: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parent = make_parent(tmp_path / "parent", ("sql",) * len(LORAS))
    monkeypatch.setitem(sys.modules, "peft", None)
    arguments = ["replay", str(parent), "-o", str(tmp_path / "out"), "--model", str(tiny_model), "--lora"]
    assert main([*arguments, f"sql={adapters['sql']}"]) == 3
    error = capsys.readouterr().err
    assert "--lora needs peft" in error
    assert "pip install 'tracekit[lora]'" in error
    assert error.count("\n") == 1
    assert main([*arguments, "sql=base"]) == 0


def test_another_adapter_in_its_folder_is_not_gone_on_with(
    tiny_model: Path, adapters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "SAVE_SECONDS", 0.0)
    parent = make_parent(tmp_path / "parent", ("sql",) * len(LORAS))
    folder = tmp_path / "adapter"
    shutil.copytree(adapters["sql"], folder)

    def stop(progress: Progress) -> None:
        if progress.num_tokens:
            raise KeyboardInterrupt

    settings: dict[str, Any] = {"model": tiny_model, "lora": (f"sql={folder}",), "batch_tokens": 6}
    with pytest.raises(KeyboardInterrupt):
        replay(parent, tmp_path / "out", progress=stop, **settings)
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 9'))
    with pytest.raises(OutputExistsError, match=r"was begun with fingerprints .*, not .*lora sql"):
        replay(parent, tmp_path / "out", **settings)
