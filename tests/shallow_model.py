"""Makes a shallow model of a whole one: its first layers, its embedding and head, its tokenizer."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

_LAYER = re.compile(r"model\.layers\.(\d+)\.")


def make_shallow_model(model: Path, folder: Path, num_layers: int = 4) -> Path:
    """Writes what an engine does the same with as with the whole model, in a third of the time."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": num_layers}))
    with safe_open(model / "model.safetensors", "pt") as whole:
        kept = {
            name: whole.get_tensor(name)
            for name in whole.keys()  # noqa: SIM118
            if not (layer := _LAYER.match(name)) or int(layer[1]) < num_layers
        }
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
