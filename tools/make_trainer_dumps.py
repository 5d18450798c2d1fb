"""Writes tests/trainer_dumps: what trainers write, small, for the tests of importers.

    python tools/make_trainer_dumps.py verl     # with verl installed: by verl's own code
    python tools/make_trainer_dumps.py trl      # with trl installed: a step of its GRPOTrainer on a tiny model
    python tools/make_trainer_dumps.py slime    # with torch: torch.save of dictionaries as slime's source builds them
    python tools/make_trainer_dumps.py prime-rl # JSON lines as prime-rl's source writes them

The folder's README says which package and which commits these are.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "tests" / "trainer_dumps"


def make_verl(folder: Path) -> None:
    """Lets verl write a step's generations."""
    from verl.trainer.ppo.ray_trainer import RayPPOTrainer

    RayPPOTrainer._write_generations(
        inputs=["user\n2+2?\nassistant\n", "user\n2+2?\nassistant\n", "user\nName a “colour”.\nassistant\n"],
        outputs=["4", "It is 5.", "Blue"],
        gts=["4", "4", None],
        scores=[1.0, 0.0, 0.5],
        reward_extra_infos_dict={"acc": [True, False, True], "request_id": ["q-0", "q-1", "q-2"]},
        dump_path=str(folder),
        global_steps=7,
    )


def make_trl(folder: Path) -> None:
    """Runs one step of TRL's GRPO trainer, whose reward function adds the completions' ids."""
    sys.path.insert(0, str(ROOT / "tests"))
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from tiny_model import make_tiny_model

    def reward(completions: list[str], completion_ids: list[list[int]], log_extra: Any, **_: Any) -> list[float]:
        log_extra("completion_ids", completion_ids)
        return [float(len(text) % 3) for text in completions]

    with tempfile.TemporaryDirectory() as scratch:
        model = make_tiny_model(Path(scratch, "model"))
        tokenizer = AutoTokenizer.from_pretrained(model)
        config = GRPOConfig(
            output_dir=str(Path(scratch, "out")),
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=6,
            max_steps=1,
            logging_steps=1,
            log_completions=True,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            seed=0,
            temperature=0.9,
        )
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(model),
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": ["one", "two", "three", "four"]}),
            processing_class=tokenizer,
        )
        trainer.train()
        for file in Path(scratch, "out", "completions").iterdir():
            shutil.copy(file, folder)


def make_slime(folder: Path) -> None:
    """Saves samples and training data as slime's source builds them."""
    import torch

    rng = np.random.default_rng(1)
    samples, trained = [], []
    for index, (num_prompt, mask) in enumerate([(3, [1, 1, 1, 1]), (2, [1, 1, 0, 0, 1, 1]), (4, [1, 1])]):
        num = len(mask)
        tokens = rng.integers(10, 90, num_prompt + num).tolist()
        logprobs = [float(np.float32(-rng.exponential())) if kept else 0.0 for kept in mask]
        samples.append(
            {
                "group_index": index // 2,
                "index": index,
                "prompt": f"prompt {index}",
                "tokens": tokens,
                "response": f"response {index}",
                "response_length": num,
                "label": "4",
                "reward": float(index),
                "loss_mask": mask,
                "weight_versions": [["3"], ["3", "4"], ["4"]][index],
                "rollout_log_probs": logprobs,
                "remove_sample": False,
                "teacher_log_probs": None,
                "status": ["completed", "truncated", "aborted"][index],
                "metadata": {},
                "session_id": None,
                "spec_info": {"spec_accept_token_num": 0},
                "prefix_cache_info": {"cached_tokens": 0, "total_prompt_tokens": num_prompt},
            }
        )
        trainer = torch.tensor(logprobs) + torch.tensor(rng.normal(0, 0.02, num), dtype=torch.float32)
        trained.append(
            {
                "data_parallel_rank": 0,
                "sample_index": index,
                "rollout_position": index,
                "tokens": torch.tensor(tokens),
                "total_lengths": num_prompt + num,
                "response_lengths": num,
                "rewards": float(index),
                "loss_masks": torch.tensor(mask, dtype=torch.int32),
                "rollout_log_probs": torch.tensor(logprobs),
                "log_probs": trainer,
                "ref_log_probs": (trainer - 0.125).to(torch.bfloat16),
                "advantages": torch.full((num,), 0.5 - index),
                "entropy": torch.tensor(rng.uniform(0, 2, num), dtype=torch.float32),
            }
        )
    torch.save({"rollout_id": 5, "samples": samples}, folder / "rollout_5.pt")
    dump = {"format_version": 2, "rollout_id": 5, "rank": 0, "samples": trained, "dp_shards": []}
    torch.save(dump, folder / "train_5.pt")
    names = [name for name in trained[0] if name not in ("data_parallel_rank", "sample_index", "rollout_position")]
    by_rank = {name: [sample[name] for sample in trained] for name in names}
    torch.save({"rollout_id": 5, "rank": 1, "rollout_data": by_rank}, folder / "train_5_rank_1.pt")


def make_prime_rl(folder: Path) -> None:
    """Writes two ranks' exports of a step: one turn, several turns, and the older record of version 1."""
    rng = np.random.default_rng(2)
    shapes = {"rank_0": [(3, [1, 1, 1, 1]), (2, [1, 1, 0, 0, 1, 1, 0])], "rank_1": [(4, [1, 1, 1])]}
    for rank, (name, sequences) in enumerate(shapes.items()):
        lines = [_prime_rl_record(rng, rank, i, *sequence) for i, sequence in enumerate(sequences)]
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n" for line in lines)
        )


def _prime_rl_record(rng: np.random.Generator, rank: int, index: int, num_prompt: int, mask: list[int]) -> Any:
    num = num_prompt + len(mask)
    kept = [False] * num_prompt + [bool(one) for one in mask]
    inference = [float(np.float32(-rng.exponential())) if one else 0.0 for one in kept]
    trainer = [
        float(np.float32(value + rng.normal(0, 0.02))) if one else -2.5
        for value, one in zip(inference, kept, strict=True)
    ]
    record = {"schema_version": 1, "step": 12, "export_step": 12, "rank": rank, "micro_step": 0}
    record |= {"micro_sequence_idx": index, "export_sequence_idx": index, "run_id": None, "env_name": "gsm8k"}
    record |= {
        "token_ids": rng.integers(10, 90, num).tolist(),
        "position_ids": list(range(num)),
        "loss_mask": kept,
        "advantages": [0.5 if one else 0.0 for one in kept],
        "losses": [{"rl": {"advantage": 0.5 if one else 0.0, "mask": one}} for one in kept],
        "rewards": [1.0] * num,
        "inference_logprobs": inference,
        "trainer_logprobs": trainer,
        "entropy": rng.uniform(0, 2, num).astype(np.float32).tolist(),
    }
    if rank == 1:  # as before exports had runs and loss channels; and a logprob that was not finite
        for name in ("export_step", "run_id", "losses"):
            del record[name]
        record["training_mode"] = "rl"
        record["trainer_logprobs"][-1] = None
    return record


MAKERS = {"verl": make_verl, "trl": make_trl, "slime": make_slime, "prime-rl": make_prime_rl}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("trainer", choices=MAKERS)
    name = parser.parse_args().trainer
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    MAKERS[name](folder)
    print("\n".join(str(path.relative_to(ROOT)) for path in sorted(folder.iterdir())))


if __name__ == "__main__":
    main()
