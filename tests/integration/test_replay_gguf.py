"""llama.cpp on a real Q4_1 file against the fp32 replay of the same model, by llama.cpp's own tool and by NumPy.

The tool is `llama-perplexity --kl-divergence` of the sources that the wheel was compiled from. It is given the fp32
replay's rows in the format that it writes itself, reads the recorded tokens with the Q4_1 file on its own, and prints
the statistics that are compared with those of the two traces. Seen: a mean KLD of 0.004045 in both, all figures equal
to 0.1%. How tokens are cut into calls, and whether attention is fused, alone makes a mean KLD of 0.004 between two runs
of llama.cpp on this file (activations are rounded to 8 bits), so rows are compared with those of equal calls.
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers

import reference
from factories import make_request, make_trace
from tracekit import connect
from tracekit.replay import replay
from tracekit.store import Trace

GGUF_VARIABLE = "TRACEKIT_TEST_GGUF"
TOOL_VARIABLE = "TRACEKIT_TEST_LLAMA_PERPLEXITY"

# Like the tool: the text is cut into chunks, and the tokens of their second halves are scored.
CHUNK = 128
NUM_CHUNKS = 6
FIRST = CHUNK // 2
DECODED = ("c0", "c3")

Float32s = npt.NDArray[np.float32]
Rows = dict[str, Float32s]


def file_named_by(variable: str, what: str) -> Path:
    value = os.environ.get(variable)
    if not value or not Path(value).is_file():
        pytest.fail(f"set {variable} to {what} (`make test` does it), not to {value!r}")
    return Path(value)


@pytest.fixture(scope="module")
def gguf() -> Path:
    return file_named_by(GGUF_VARIABLE, "the GGUF file, at Q4_1, of the model that TRACEKIT_TEST_MODEL names")


@pytest.fixture(scope="module")
def chunks(model_path: Path) -> dict[str, list[int]]:
    """Token ids of running prose, by request."""
    records = sorted((Path(__file__).parents[2] / "docs" / "adr").glob("000*.md"))
    text = "\n".join(record.read_text(encoding="utf-8") for record in records)
    ids = transformers.AutoTokenizer.from_pretrained(model_path)(text)["input_ids"]
    assert len(ids) >= CHUNK * NUM_CHUNKS
    return {f"c{index}": ids[index * CHUNK : (index + 1) * CHUNK] for index in range(NUM_CHUNKS)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gguf")


@pytest.fixture(scope="module")
def parent(chunks: dict[str, list[int]], folder: Path) -> Path:
    requests = [
        make_request(name, prompt=ids[: FIRST + 1], token_ids=ids[FIRST + 1 :], tokens={"top_token_ids": None})
        for name, ids in chunks.items()
    ]
    return make_trace(folder / "parent", requests=requests)


@pytest.fixture(scope="module")
def fp32(parent: Path, model_path: Path, folder: Path) -> Path:
    replay(parent, folder / "fp32", backend="hf", model=model_path, dtype="float32", logits=True)
    return folder / "fp32"


@pytest.fixture(scope="module")
def q4_1(parent: Path, gguf: Path, folder: Path) -> Path:
    replay(parent, folder / "q4_1", backend="llamacpp", model=gguf, logits=True, threads=1)
    return folder / "q4_1"


def statistics(base: Rows, other: Rows, chunks: dict[str, list[int]]) -> dict[str, float]:
    """From rows of logits in float64, what llama-perplexity prints, by its definitions; shares and Δp in percent."""
    divergences, differences, same = [], [], []
    for name, ids in chunks.items():
        for base_V, other_V, token_id in zip(base[name], other[name], ids[FIRST + 1 :], strict=True):
            base_logprobs, logprobs = reference.log_softmax(base_V), reference.log_softmax(other_V)
            counted = base_logprobs > -16  # The tool leaves out the others.
            divergences.append((np.exp(base_logprobs) * (base_logprobs - logprobs))[counted].sum())
            differences.append(100 * (np.exp(logprobs[token_id]) - np.exp(base_logprobs[token_id])))
            same.append(base_V.argmax() == other_V.argmax())
    return {
        "Mean KLD": float(np.mean(divergences)),
        "Maximum KLD": float(max(divergences)),
        "Median KLD": float(np.median(divergences)),
        **{f"{share:.1f}% KLD": float(np.percentile(divergences, share)) for share in (90, 95, 99)},
        "Mean Δp": float(np.mean(differences)),
        "RMS Δp": float(np.sqrt(np.mean(np.square(differences)))),
        "Same top p": 100 * float(np.mean(same)),
    }


def assert_agree(found: dict[str, float], expected: dict[str, float], relative: float = 0.01) -> None:
    """The tool prints KLD with six decimals and percentages with three; its base has 16 bits a logprob."""
    for name, value in found.items():
        if not name.endswith("KLD"):
            assert value == pytest.approx(expected[name], rel=relative, abs=1e-3), name
        elif name == "Mean KLD":
            assert value == pytest.approx(expected[name], rel=0.01, abs=5e-7), name
        else:
            assert value == pytest.approx(expected[name], rel=0.01, abs=2e-5), name


def by_the_library(base: Path, other: Path) -> dict[str, float]:
    """The tool's figures as the SQL library has them, under the tool's names with single spaces."""
    with connect(base, other) as session:
        rows = session.sql("SELECT name, value FROM kld_summary").rows()
        of_tokens = dict(session.sql("SELECT name, value FROM metrics WHERE basis = 'raw'").rows())
    found = {name: value if name.endswith("KLD") else 100 * value for name, value in rows}
    named = {"Mean PPL(base)": "ppl_a", "Mean PPL(Q)": "ppl_b"}
    in_percent = {
        "Cor(ln(PPL(Q)), ln(PPL(base)))": "logprob_pearson_correlation",
        "Mean Δp": "delta_p_mean",
        "RMS Δp": "delta_p_rms",
        "Same top p": "same_top_p",
    }
    of_metrics = {name: of_tokens[metric] for name, metric in named.items()}
    of_metrics |= {name: 100 * of_tokens[metric] for name, metric in in_percent.items()}
    for name in found.keys() & of_metrics.keys():
        assert of_metrics[name] == pytest.approx(found[name], rel=1e-4), name
    return found | of_metrics


def logits_of(path: Path) -> Rows:
    found: dict[tuple[str, int], Float32s] = {}
    table = Trace(path).read("logits", ["request_id", "output_index", "logits"])
    for batch in filter(len, table.to_batches()):
        rows_BV = batch["logits"].flatten().to_numpy().reshape(batch.num_rows, -1)
        keys = zip(batch["request_id"].to_pylist(), batch["output_index"].to_pylist(), strict=True)
        found |= dict(zip(keys, rows_BV, strict=True))
    names = sorted({name for name, _ in found})
    return {name: np.array([row for key, row in sorted(found.items()) if key[0] == name]) for name in names}


def write_base(path: Path, chunks: dict[str, list[int]], rows: Rows) -> None:
    """Writes the tool's file of a base model: tokens, and logprobs of each row in 16 bits."""
    vocab_size = next(iter(rows.values())).shape[1]
    with path.open("wb") as file:
        file.write(b"_logits_" + struct.pack("<3i", CHUNK, vocab_size, len(chunks)))
        file.write(np.array(list(chunks.values()), "<i4").tobytes())
        for name in chunks:
            for row_V in rows[name]:
                highest, lowest = row_V.max(), max(row_V.min(), row_V.max() - 16)
                logprobs_V = reference.log_softmax(row_V)
                scale = (highest - lowest) / 65535
                steps_V = np.rint((np.maximum(row_V, lowest) - lowest) / scale).astype("<u2")
                file.write(struct.pack("<2f", scale, logprobs_V.max() - (highest - lowest)) + steps_V.tobytes())
                file.write(b"\0\0" * (vocab_size % 2))


@pytest.fixture(scope="module")
def reader(gguf: Path) -> Iterator[Any]:
    """llama-cpp-python's own way to read tokens, as the backend does by default."""
    import llama_cpp

    settings: dict[str, Any] = {"n_ctx": CHUNK, "n_threads": 1, "n_threads_batch": 1, "flash_attn": True}
    made = llama_cpp.Llama(str(gguf), n_batch=CHUNK, logits_all=True, verbose=False, **settings)
    yield made
    made.close()


def test_divergence_from_fp32_is_what_the_tool_of_llama_cpp_finds(
    chunks: dict[str, list[int]], fp32: Path, q4_1: Path, gguf: Path, folder: Path
) -> None:
    tool = file_named_by(TOOL_VARIABLE, "llama-perplexity of llama.cpp")
    base = logits_of(fp32)
    write_base(folder / "base.kld", chunks, base)
    settings = ["-c", str(CHUNK), "-b", str(CHUNK), "-t", "1", "--kl-divergence"]
    command = [tool, "-m", gguf, *settings, "--kl-divergence-base", folder / "base.kld"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed = re.findall(r"^ *(\S.*?) *: +(-?[\d.]+)(?: ±|%| *$)", done.stdout, flags=re.M)
    expected = {" ".join(name.split()): float(value) for name, value in printed}
    assert_agree(statistics(base, logits_of(q4_1), chunks), expected)
    found = by_the_library(fp32, q4_1)
    assert_agree({name: found[name] for name in found.keys() & expected.keys()}, expected, relative=1e-3)
    assert {
        "Mean PPL(base)",
        "Mean PPL(Q)",
        "Cor(ln(PPL(Q)), ln(PPL(base)))",
        "99.9% KLD",
        "25.0% Δp",
    } <= expected.keys()


def test_divergence_from_fp32_is_that_of_independent_forward_passes(
    chunks: dict[str, list[int]], fp32: Path, q4_1: Path, model_path: Path, reader: Any
) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    base, other = {}, {}
    for name, ids in chunks.items():
        with torch.inference_mode():
            base[name] = model(torch.tensor([ids])).logits[0, FIRST:-1].numpy()
        reader.reset()
        reader.eval(ids)
        other[name] = reader.scores[FIRST : CHUNK - 1].copy()
    found = logits_of(q4_1)
    assert_agree(statistics(logits_of(fp32), found, chunks), statistics(base, other, chunks))
    for name, rows in other.items():
        np.testing.assert_array_equal(found[name], rows)
    (run,) = Trace(q4_1).read("runs").to_pylist()
    assert (run["quantization"], run["dtype"], run["kv_cache_dtype"]) == ("Q4_1", None, "float16")


def test_decoding_is_prefill_within_the_noise_of_llama_cpp(
    chunks: dict[str, list[int]], parent: Path, q4_1: Path, gguf: Path, folder: Path, reader: Any
) -> None:
    only = [("run", name) for name in DECODED]
    out = folder / "decoded"
    replay(parent, out, backend="llamacpp", model=gguf, mode="decode", logits=True, threads=1, only=only)
    found = logits_of(out)
    for name in DECODED:
        reader.reset()
        reader.eval(chunks[name][: FIRST + 1])
        for token_id in chunks[name][FIRST + 1 : -1]:
            reader.eval([token_id])
        np.testing.assert_array_equal(found[name], reader.scores[FIRST : CHUNK - 1])
    decoded = {name: chunks[name] for name in DECODED}
    prefilled = logits_of(q4_1)
    differences = statistics({name: prefilled[name] for name in DECODED}, found, decoded)
    assert 0 < differences["Mean KLD"] < 0.008
    assert differences["Same top p"] > 90
