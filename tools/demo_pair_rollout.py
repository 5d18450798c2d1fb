"""The rollout that `tracekit demo` shows: 20 prompts, one for each thing that sampling can do to logprobs.

    python tools/demo_pair_rollout.py MODEL

`tools/make_demo_traces.py` records it. Like `demo_rollout.py`, whose handbook it asks, it knows nothing of tracekit.
"""

import sys

from vllm import LLM, SamplingParams

from demo_rollout import HANDBOOK

MAX_TOKENS = 40
GREEDY = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
PLAIN = SamplingParams(temperature=1.0, seed=1, max_tokens=MAX_TOKENS)
COOL = SamplingParams(temperature=0.6, seed=2, max_tokens=MAX_TOKENS)
NUCLEUS = SamplingParams(temperature=0.8, top_p=0.9, seed=5, max_tokens=MAX_TOKENS)
PENALISED = SamplingParams(temperature=0.8, repetition_penalty=1.2, seed=4, max_tokens=MAX_TOKENS)

CHAT = [
    ("What is the capital of France?", GREEDY),
    ("Explain photosynthesis to a child.", GREEDY),
    ("How do I boil an egg?", COOL),
    ("Name three uses of a paper clip.", COOL),
    ("Write a haiku about the sea.", NUCLEUS),
    ("Give me a title for a story about a lighthouse.", NUCLEUS),
    ("Tell me something about bridges.", PENALISED),
    ("Why is the sky blue?", PENALISED),
]
TEXT = [
    ("def quicksort(items):\n    ", GREEDY),
    ("1, 1, 2, 3, 5, 8,", GREEDY),
    ("In 1969, the first people", PLAIN),
    ("Once upon a time, in a village by the river,", PLAIN),
    ("The three laws of thermodynamics are", NUCLEUS),
    ("Dear hiring manager,\n", PLAIN),
]
# The first one fills the prefix cache for the others.
ASKED = [
    ("When is lamp 3 checked?", GREEDY),
    ("What is used for cleaning?", GREEDY),
    ("Where are checks noted?", PLAIN),
    ("When is lamp 11 checked?", PLAIN),
    ("How many lamps are there?", NUCLEUS),
    ("Summarise the handbook.", NUCLEUS),
]


def main() -> None:
    llm = LLM(sys.argv[1], dtype="bfloat16", enforce_eager=True, max_model_len=2048, seed=0)
    llm.chat([[{"role": "user", "content": text}] for text, _ in CHAT], [how for _, how in CHAT], use_tqdm=False)
    llm.generate([text for text, _ in TEXT], [how for _, how in TEXT], use_tqdm=False)
    asked = [(f"{HANDBOOK}\n\nQuestion: {text}\nAnswer:", how) for text, how in ASKED]
    for part in (asked[:1], asked[1:]):
        llm.generate([text for text, _ in part], [how for _, how in part], use_tqdm=False)


if __name__ == "__main__":
    main()
