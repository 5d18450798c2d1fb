"""LoRA adapters over one base model: each sequence is scored with the one that it was sampled with.

Shapes: R rows that predict output tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Sequences
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tracekit.errors import BackendUnavailableError, ModelError
from tracekit.replay.backends.base import Rows, Sequence
from tracekit.replay.backends.hf.split import SplitModel, by_group

_CHECKED_IDS = (0, 1, 2, 1, 0, 3, 2)


class Adapters:
    """Adapters of peft in a model of transformers, one of them or none at work.

    Args:
        model: the base model; adapters are put into it.
        folders: of adapters, by name; None is the base model.

    Attributes:
        names: that are known.

    Raises:
        ModelError: a folder holds no adapter, or none that can be switched off again.
        BackendUnavailableError: peft is missing.
    """

    def __init__(self, model: Any, folders: Mapping[str, Path | None]) -> None:
        self.names = frozenset(folders)
        found = {name: folder for name, folder in folders.items() if folder is not None}
        # 0 is the base model.
        self._numbers = dict.fromkeys(folders, 0) | {name: number for number, name in enumerate(found, 1)}
        self._in_use = 0
        self._peft: Any = None
        before_TV = _logits(model) if found else torch.empty(0)
        for name, folder in found.items():
            self._peft = self._loaded(model, folder, self._numbers[name])
            self._peft.base_model.disable_adapter_layers()
            tolerance = 4 * torch.finfo(before_TV.dtype).eps * float(before_TV.abs().max())
            if not float((_logits(model) - before_TV).abs().max()) <= tolerance:
                raise _changes_the_base(folder)

    def rows(self, batch: Sequences[Sequence], read: Callable[[Sequences[Sequence]], torch.Tensor]) -> torch.Tensor:
        """Returns the hidden states [R, H] of a batch, one sequence after the other.

        Args:
            batch: the sequences.
            read: makes those of sequences that have one adapter.
        """
        numbers = [self._number(sequence) for sequence in batch]
        if len(set(numbers)) == 1:
            self._use(numbers[0])
            return read(batch)
        rows: dict[int, torch.Tensor] = {}
        for number in sorted(set(numbers)):
            self._use(number)
            places = [place for place, other in enumerate(numbers) if other == number]
            read_RH = read([batch[place] for place in places])
            lengths = [len(batch[place].output_ids) for place in places]
            rows |= zip(places, torch.split(read_RH, lengths), strict=True)
        return torch.cat([rows[place] for place in range(len(batch))])

    def logits_of(
        self, batch: Sequences[Sequence], rows_RH: torch.Tensor, split: SplitModel
    ) -> Callable[[int, int], torch.Tensor]:
        """Returns what makes the logits of rows start to stop: an adapter may change the head too."""
        numbers_R = np.repeat(
            [self._number(sequence) for sequence in batch], [len(sequence.output_ids) for sequence in batch]
        )

        def make(hidden_RH: torch.Tensor, number: int) -> torch.Tensor:
            self._use(number)
            return split.logits(hidden_RH)

        return lambda start, stop: by_group(rows_RH[start:stop], numbers_R[start:stop], make)

    def told(self, rows: Rows) -> Rows:
        """Returns rows whose request says which adapter they were scored with; its version is not known."""
        used = rows.sequence.request.get("lora") if self._number(rows.sequence) else None
        return replace(rows, request={**rows.request, "lora": used, "lora_version": None})

    def _number(self, sequence: Sequence) -> int:
        name = sequence.request.get("lora")
        return 0 if name is None else self._numbers[name]

    def _use(self, number: int) -> None:
        if number == self._in_use:
            return
        if number:
            self._peft.base_model.enable_adapter_layers()
            self._peft.set_adapter(_name(number), inference_mode=True)
        else:
            self._peft.base_model.disable_adapter_layers()
        self._in_use = number

    def _loaded(self, model: Any, folder: Path, number: int) -> Any:
        """Returns peft's view of the model, with one more adapter."""
        peft = _imported_peft()
        if not (folder / "adapter_config.json").is_file():
            raise ModelError(f"{folder} is no folder of a LoRA adapter: it has no adapter_config.json")
        try:
            config = peft.PeftConfig.from_pretrained(str(folder))
            if config.peft_type != peft.PeftType.LORA or getattr(config, "alora_invocation_tokens", None):
                raise ModelError(f"{folder} is an adapter of a kind that is not known here; LoRA adapters are")
            if config.bias != "none":
                raise _changes_the_base(folder)
            config.inference_mode = True
            # In the dtype of the model, not in float32 as for training.
            settings: dict[str, Any] = {"autocast_adapter_dtype": False}
            whole = self._peft
            if whole is None:
                whole = peft.PeftModelForCausalLM(model, config, adapter_name=_name(number), **settings)
            device = str(next(model.parameters()).device)
            result = whole.load_adapter(str(folder), _name(number), torch_device=device, **settings)
        except ModelError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            beside = "" if self._peft is None else " beside those before it"
            raise ModelError(
                f"{folder} cannot be loaded as a LoRA adapter of the model{beside}: {reason[:300]}"
            ) from error
        if odd := [*result.missing_keys, *result.unexpected_keys]:
            raise ModelError(
                f"{folder} is no LoRA adapter of this model: {odd[0]} is missing or fits nowhere, "
                f"one of {len(odd)} such tensors"
            )
        return whole


def _name(number: int) -> str:
    # Names of modules have no dots, those of adapters may.
    return f"adapter{number:04}"


def _changes_the_base(folder: Path) -> ModelError:
    return ModelError(
        f"{folder} changes weights of the base model itself (by its bias, or an initialisation like PiSSA), so it "
        "cannot be scored beside others; merge it into the model, and give that as --model"
    )


def _logits(model: Any) -> torch.Tensor:
    ids_1T = torch.tensor([_CHECKED_IDS], device=model.device)
    logits_TV: torch.Tensor = model(input_ids=ids_1T, use_cache=False).logits[0]
    return logits_TV


def _imported_peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise BackendUnavailableError(
            f"--lora needs peft, which cannot be loaded ({error}); install it, e.g. pip install 'tracekit[lora]'"
        ) from error
    return peft
