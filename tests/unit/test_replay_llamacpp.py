"""The llama.cpp backend on a tiny model in fp32, against transformers with the same weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers
from click.testing import CliRunner

import reference
from factories import MadeRequest, make_request, make_trace
from replayed import odd_values
from tiny_gguf import write_gguf
from tracekit.cli.replay import command
from tracekit.errors import ConfigError, InputError, ModelError
from tracekit.fingerprint import model_fingerprint
from tracekit.replay import replay
from tracekit.store import Trace

VOCAB = 100
NUM_POSITIONS = 400
# Prompt and output tokens of each request.
LENGTHS = {"one": (1, 1), "short": (3, 4), "long_prompt": (61, 2), "long": (30, 290), "greedy": (5, 17)}
EXACT: dict[str, Any] = {"kv_dtype": "float32", "flash_attention": False, "threads": 1}

Float64s = npt.NDArray[np.float64]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=96,
        max_position_embeddings=NUM_POSITIONS,
        initializer_range=0.2,
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def gguf(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny-f32.gguf", model)


@pytest.fixture(scope="module")
def requests() -> list[MadeRequest]:
    random = np.random.default_rng(0)
    return [
        make_request(
            name,
            prompt=random.integers(0, VOCAB, num_prompt).tolist(),
            token_ids=random.integers(0, VOCAB - 1, num_output).tolist(),
            temperature=0.0 if name == "greedy" else 0.8,
        )
        for name, (num_prompt, num_output) in LENGTHS.items()
    ]


@pytest.fixture(scope="module")
def parent(requests: list[MadeRequest], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_trace(tmp_path_factory.mktemp("parent") / "parent", requests=requests)


@pytest.fixture(scope="module")
def expected(model: Any, requests: list[MadeRequest]) -> dict[str, dict[str, Float64s]]:
    """Of each request, what one plain forward pass gives in the rows that predict its tokens."""
    found = {}
    for request in requests:
        prompt, output = request.request["prompt_token_ids"][0], request.tokens["token_id"]
        with torch.inference_mode():
            made = model(torch.tensor([prompt + output[:-1]]), output_hidden_states=True)
        rows = slice(len(prompt) - 1, None)
        found[request.request["request_id"]] = {
            "logits": made.logits[0, rows].double().numpy(),
            "hidden": made.hidden_states[-1][0, rows].double().numpy(),
        }
    return found


def whole_rows(path: Path, table: str) -> dict[str, Float64s]:
    found: dict[str, list[Any]] = {}
    for row in sorted(Trace(path).read(table).to_pylist(), key=lambda row: (row["request_id"], row["output_index"])):
        assert row["source_dtype"] == "float32"
        found.setdefault(row["request_id"], []).append(row[table])
    return {name: np.array(rows, np.float64) for name, rows in found.items()}


def scored(path: Path) -> dict[tuple[str, int], dict[str, Any]]:
    return {(row["request_id"], row["output_index"]): row for row in Trace(path).read("tokens").to_pylist()}


@pytest.mark.parametrize(("batch_tokens", "hidden"), [(512, True), (64, False), (7, True)])
@pytest.mark.parametrize("mode", ["prefill", "decode"])
def test_rows_are_those_of_a_forward_pass_in_torch(
    expected: dict[str, dict[str, Float64s]],
    parent: Path,
    gguf: Path,
    tmp_path: Path,
    mode: str,
    batch_tokens: int,
    hidden: bool,
) -> None:
    replay(
        *(parent, tmp_path / "out"),
        backend="llamacpp",
        model=gguf,
        mode=mode,
        batch_tokens=batch_tokens,
        logits=True,
        hidden=hidden,
        **EXACT,
    )
    for table in ("logits", "hidden") if hidden else ("logits",):
        found = whole_rows(tmp_path / "out", table)
        assert found.keys() == expected.keys()
        for name, rows in found.items():
            np.testing.assert_allclose(rows, expected[name][table], atol=1e-4)
    rows_of_tokens = scored(tmp_path / "out")
    assert len(rows_of_tokens) == sum(length for _, length in LENGTHS.values())
    for (name, index), row in rows_of_tokens.items():
        logits, token_id = expected[name]["logits"][index], row["token_id"]
        logprobs = reference.log_softmax(logits)
        assert row["logprob"] == pytest.approx(logprobs[token_id], abs=1e-4)
        assert row["parent_top_logits"] == pytest.approx([logits[token_id], logits[token_id + 1]], abs=1e-4)
        tempered = logprobs if name == "greedy" else reference.log_softmax(logits / 0.8)
        assert row["processed_logprob"] == pytest.approx(tempered[token_id], abs=1e-4)


def test_slices_of_logits_change_nothing(
    parent: Path, gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large vocabulary leaves room for few rows at a time: seven here, more or fewer than a call gives."""
    settings: dict[str, Any] = {"backend": "llamacpp", "model": gguf, **EXACT}
    replay(parent, tmp_path / "whole", **settings)
    monkeypatch.setattr("tracekit.replay.scoring.SLICE_BYTES", 7 * 4 * VOCAB)
    for hidden, batch_tokens in ((False, 16), (True, 16), (False, 3)):
        out = tmp_path / f"{hidden}-{batch_tokens}"
        replay(parent, out, batch_tokens=batch_tokens, hidden=hidden, logits=True, **settings)
        whole = scored(tmp_path / "whole")
        assert scored(out).keys() == whole.keys()
        for key, row in scored(out).items():
            assert row["logprob"] == pytest.approx(whole[key]["logprob"], abs=1e-4)
            assert row["top_logits"] == pytest.approx(whole[key]["top_logits"], abs=1e-4)
        assert Trace(out).num_rows("logits") == len(whole)


@pytest.mark.parametrize("mode", ["prefill", "decode"])
def test_what_a_sequence_gives_depends_on_no_other(parent: Path, gguf: Path, tmp_path: Path, mode: str) -> None:
    settings: dict[str, Any] = {"backend": "llamacpp", "model": gguf, "mode": mode, "logits": True, "threads": 1}
    replay(parent, tmp_path / "all", **settings)
    together = whole_rows(tmp_path / "all", "logits")
    for name in LENGTHS:
        replay(parent, tmp_path / name, only=[("run", name)], **settings)
        np.testing.assert_array_equal(whole_rows(tmp_path / name, "logits")[name], together[name])


@pytest.mark.parametrize(
    ("options", "least", "most"),
    [
        ({"kv_dtype": "float32", "flash_attention": False}, 0, 1e-4),
        ({"kv_dtype": "float16", "flash_attention": False}, 1e-3, 0.03),
        ({"kv_dtype": "float16", "flash_attention": True}, 1e-3, 0.03),
        ({"kv_dtype": "bfloat16", "flash_attention": False}, 0.04, 0.3),
        ({"kv_dtype": "q8_0"}, 0.1, 1),
        ({}, 1e-3, 0.03),
    ],
    ids=str,
)
def test_the_cache_has_the_dtype_that_was_asked_for(
    expected: dict[str, dict[str, Float64s]],
    parent: Path,
    gguf: Path,
    tmp_path: Path,
    options: dict[str, Any],
    least: float,
    most: float,
) -> None:
    """Each dtype is told by how far it takes logits, which reach 8, from those in fp32."""
    replay(parent, tmp_path / "out", backend="llamacpp", model=gguf, logits=True, threads=1, **options)
    found = whole_rows(tmp_path / "out", "logits")
    assert least < max(np.abs(rows - expected[name]["logits"]).max() for name, rows in found.items()) < most
    (run,) = Trace(tmp_path / "out").read("runs").to_pylist()
    assert run["kv_cache_dtype"] == options.get("kv_dtype", "float16")
    assert run["attention_backend"] == {True: "flash", False: "standard", None: None}[options.get("flash_attention")]


def test_tokens_are_drawn_again_as_in_torch(model: Any, gguf: Path, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "hf")
    tokens = np.random.default_rng(1).integers(0, VOCAB - 1, 60).tolist()
    requests = [
        make_request("seeded", token_ids=tokens, seed=7),
        make_request("greedy", token_ids=[4], temperature=0.0),
    ]
    path = make_trace(tmp_path / "parent", requests=requests, run={"engine_generation": "v2"})
    replay(path, tmp_path / "torch", model=tmp_path / "hf", free="coupled")
    replay(path, tmp_path / "llama", backend="llamacpp", model=gguf, free="coupled", **EXACT)
    drawn = {key: row["coupled_token_id"] for key, row in scored(tmp_path / "llama").items()}
    assert drawn == {key: row["coupled_token_id"] for key, row in scored(tmp_path / "torch").items()}
    assert len({drawn["seeded", index] for index in range(60)}) > 10


def test_the_run_says_what_computed_it(parent: Path, gguf: Path, tmp_path: Path) -> None:
    import llama_cpp

    replay(parent, tmp_path / "out", backend="llamacpp", model=gguf.parent, mode="decode", batch_tokens=33, threads=1)
    (run,) = Trace(tmp_path / "out").read("runs").to_pylist()
    told = {
        "role": "replay",
        "backend": "llamacpp",
        "mode": "decode",
        "engine": "llama.cpp",
        "engine_version": f"llama-cpp-python {llama_cpp.__version__}",
        "model": str(gguf),
        "model_fingerprint": model_fingerprint(gguf),
        "vocab_size": VOCAB,
        "max_model_len": NUM_POSITIONS,
        "dtype": "float32",
        "quantization": None,
        "kv_cache_dtype": "float16",
        "head_weight_dtype": None,
        "head_output_dtype": "float32",
        "max_num_batched_tokens": 33,
        "num_threads": 1,
    }
    assert {name: run[name] for name in told} == told
    assert run["model_fingerprint"] is not None
    assert not odd_values(tmp_path / "out")


def test_nothing_of_llama_cpp_reaches_the_terminal(
    parent: Path, gguf: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    replay(parent, tmp_path / "out", backend="llamacpp", model=gguf, threads=1)
    (tmp_path / "cut.gguf").write_bytes(gguf.read_bytes()[:-1000])
    with pytest.raises(ModelError):
        replay(parent, tmp_path / "other", backend="llamacpp", model=tmp_path / "cut.gguf")
    assert capfd.readouterr() == ("", "")


def test_what_does_not_fit_is_an_error_in_one_line(parent: Path, model: Any, gguf: Path, tmp_path: Path) -> None:
    for folder in ("none", "two"):
        (tmp_path / folder).mkdir()
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / "two" / name).write_bytes(gguf.read_bytes())
    (tmp_path / "text.gguf").write_text("not a model")
    (tmp_path / "cut.gguf").write_bytes(gguf.read_bytes()[:-1000])
    (tmp_path / "head.gguf").write_bytes(gguf.read_bytes()[:100])
    write_gguf(tmp_path / "strange.gguf", model, architecture="abacus")
    write_gguf(tmp_path / "encoder.gguf", model, causal=False)
    fits = {"model": gguf}
    cases: list[tuple[type[InputError], str, dict[str, Any]]] = [
        (ConfigError, "needs a model: give --model and a .gguf file", {"model": None}),
        (ModelError, r"nowhere\.gguf cannot be read \(No such file", {"model": tmp_path / "nowhere.gguf"}),
        (ModelError, "none holds no .gguf file", {"model": tmp_path / "none"}),
        (ModelError, "two holds 2 .gguf files; name one", {"model": tmp_path / "two"}),
        (ModelError, r"text\.gguf is no GGUF file: it begins with b'not ", {"model": tmp_path / "text.gguf"}),
        (ModelError, r"cut\.gguf cannot be loaded by llama\.cpp: .*corrupt", {"model": tmp_path / "cut.gguf"}),
        (ModelError, r"head\.gguf cannot be loaded by llama\.cpp: \w", {"model": tmp_path / "head.gguf"}),
        (ModelError, r"strange\.gguf cannot be loaded .*abacus", {"model": tmp_path / "strange.gguf"}),
        (ModelError, r"encoder\.gguf is no causal language model", {"model": tmp_path / "encoder.gguf"}),
        (ConfigError, r"mode 'prefil' is not known \(did you mean 'prefill'\?\)", {**fits, "mode": "prefil"}),
        (ConfigError, r"kv-dtype 'q8' is not known \(did you mean 'q8_0'\?\)", {**fits, "kv_dtype": "q8"}),
        (ConfigError, "batch-tokens must be at least 1, not 0", {**fits, "batch_tokens": 0}),
        (ConfigError, "threads must be at least 1, not 0", {**fits, "threads": 0}),
        (ConfigError, "gpu-layers must be at least 0, not -1", {**fits, "gpu_layers": -1}),
        (ConfigError, "no option 'dtype'", {**fits, "dtype": "float32"}),
        (
            ConfigError,
            "cannot compute with these options.*: quantized V cache requires flash_attn",
            {**fits, "kv_dtype": "q8_0", "flash_attention": False},
        ),
    ]
    for kind, message, options in cases:
        with pytest.raises(kind, match=message) as info:
            replay(parent, tmp_path / "out", backend="llamacpp", **options)
        assert info.value.exit_code == 2
        assert "\n" not in str(info.value)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (make_request("odd", token_ids=[VOCAB]), f"request 'odd' has token id {VOCAB}, but .* vocabulary of {VOCAB}"),
        (make_request("odd", prompt=[1, 500]), "request 'odd' has token id 500"),
        (make_request("odd", prompt=[1] * 399, token_ids=[1, 2, 3]), "'odd' has 401 tokens to read, .* at most 400"),
        (make_request("odd", token_ids=[VOCAB - 1]), f"'odd' has token id {VOCAB} among its candidates"),
    ],
)
def test_a_model_that_does_not_fit_names_the_request(
    request_: MadeRequest, message: str, tmp_path: Path, gguf: Path
) -> None:
    path = make_trace(tmp_path / "t", requests=[make_request("good"), request_])
    with pytest.raises(ModelError, match=message):
        replay(path, tmp_path / "out", backend="llamacpp", model=gguf)
    assert not list(tmp_path.glob("out*"))


def test_the_longest_sequence_that_the_model_takes(tmp_path: Path, gguf: Path) -> None:
    path = make_trace(tmp_path / "t", requests=[make_request("full", prompt=[1] * 398, token_ids=[1, 2, 3])])
    assert replay(path, tmp_path / "out", backend="llamacpp", model=gguf).num_tokens == 3


def test_command_takes_its_options(parent: Path, gguf: Path, tmp_path: Path) -> None:
    options = ["--kv-dtype", "float32", "--no-flash-attention", "--threads", "1", "--gpu-layers", "0"]
    arguments = [str(parent), "-o", str(tmp_path / "out"), "--backend", "llamacpp", "--model", str(gguf), *options]
    done = CliRunner().invoke(command, [*arguments, "--mode", "decode", "--batch-tokens", "9"])
    assert done.exit_code == 0, done.output
    assert done.stderr.count("\n") == 1
    (run,) = Trace(tmp_path / "out").read("runs").to_pylist()
    given = json.loads(run["options"])
    assert {name: given[name] for name in ("kv_dtype", "flash_attention", "threads", "gpu_layers", "batch_tokens")} == {
        "kv_dtype": "float32",
        "flash_attention": False,
        "threads": 1,
        "gpu_layers": 0,
        "batch_tokens": 9,
    }


def test_without_llama_cpp_the_command_exits_with_3(parent: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['llama_cpp'] = None\n"
        "from tracekit.cli.main import main\n"
        "sys.exit(main(['replay', sys.argv[1], '-o', sys.argv[2], '--backend', 'llamacpp', '--model', 'm.gguf']))"
    )
    command = [sys.executable, "-c", code, str(parent), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert done.stderr.count("\n") == 1
    assert "replay backend 'llamacpp' cannot be loaded: 'llama_cpp' is not installed" in done.stderr
    assert "pip install 'tracekit[llamacpp]'" in done.stderr
