"""What trainers add to vLLM's workers: methods called one tensor at a time, and a weight transfer engine."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open


def tensor_names(folder: str) -> list[str]:
    """Returns the names of a checkpoint's tensors."""
    with safe_open(next(Path(folder).glob("*.safetensors")), "pt") as file:
        return sorted(file.keys())


def tensor_of(folder: str, name: str, factor: float) -> torch.Tensor:
    """Returns one of them, a little changed."""
    with safe_open(next(Path(folder).glob("*.safetensors")), "pt") as file:
        return file.get_tensor(name) * factor


def keep_weights_plain() -> None:
    """Makes vLLM multiply with the parameters themselves, as on a GPU.

    On a CPU it packs them at start, and then nothing but its own reload reaches what it multiplies with.
    """
    from vllm.model_executor.layers import utils

    utils.ops._supports_onednn = False
    utils.check_cpu_sgl_kernel = lambda *_: False


class Extension:
    """Methods for `worker_extension_cls`."""

    def update_weight(self, name: str, factor: float) -> None:
        """As PipelineRL, OpenRLHF and TRL do: one load_weights for each tensor."""
        worker: Any = self
        tensor = tensor_of(worker.model_config.model, name, factor)
        worker.model_runner.model.load_weights(weights=[(name, tensor)])

    def scale_in_place(self, factor: float) -> None:
        """Writes where neither vLLM nor torch keeps count."""
        worker: Any = self
        for parameter in worker.model_runner.model.parameters():
            parameter.data.mul_(factor)

    def look_at_weights(self) -> int:
        worker: Any = self
        return sum(parameter.numel() for parameter in worker.model_runner.model.parameters())


@dataclasses.dataclass
class InitInfo:
    """Nothing is needed to begin."""


@dataclasses.dataclass
class UpdateInfo:
    """Which tensors come, and by how much they are changed."""

    names: list[str]
    factor: float


def register_transfer_engine(name: str) -> None:
    """Registers a weight transfer engine that reads the checkpoint; the real ones need GPUs."""
    from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory

    class FileEngine(WeightTransferEngine):  # type: ignore[misc]
        init_info_cls = InitInfo
        update_info_cls = UpdateInfo

        def init_transfer_engine(self, init_info: InitInfo) -> None:
            pass

        def start_weight_update(self) -> None:
            pass

        def finish_weight_update(self) -> None:
            pass

        def update_weights(self, update_info: dict[str, Any]) -> None:
            self.receive_weights(UpdateInfo(**update_info))

        def receive_weights(self, update_info: UpdateInfo) -> None:
            folder = self.model_config.model
            self.model.load_weights((name, tensor_of(folder, name, update_info.factor)) for name in update_info.names)

        def shutdown(self) -> None:
            pass

    WeightTransferEngineFactory.register_engine(name, FileEngine)
