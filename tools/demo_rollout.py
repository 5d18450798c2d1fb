"""A small rollout for the demo: 24 prompts, chat and plain, greedy and sampled, some behind a shared prefix.

    python tools/demo_rollout.py MODEL

It knows nothing of tracekit: `tracekit record -- python tools/demo_rollout.py MODEL` records it.
"""

import sys

from vllm import LLM, SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_tokens=48)
SAMPLED = SamplingParams(temperature=0.8, top_p=0.95, seed=17, max_tokens=48)

CHAT = [
    "What is the capital of France?",
    "Name three uses of a paper clip.",
    "Explain photosynthesis to a child.",
    "Write a haiku about the sea.",
    "How do I boil an egg?",
    "Translate 'good morning' into Spanish.",
    "What is 17 times 23?",
    "Give me a title for a story about a lighthouse.",
]
PLAIN = [
    "The quick brown fox",
    "def quicksort(items):\n    ",
    "In 1969, the first people",
    "SELECT name, count(*) FROM",
    "Once upon a time, in a village by the river,",
    "The three laws of thermodynamics are",
    "Dear hiring manager,\n",
    "1, 1, 2, 3, 5, 8,",
]
# Longer than two KV-cache blocks of 128 tokens, so that the later requests find it in the prefix cache.
HANDBOOK = "Handbook of the night shift. " + " ".join(
    f"Section {i}: lamp {i} must be checked at {i % 12 + 1} o'clock, cleaned with a dry cloth, and noted in the log."
    for i in range(1, 13)
)
QUESTIONS = [
    "When is lamp 3 checked?",
    "What is used for cleaning?",
    "Where are checks noted?",
    "Who reads this handbook?",
    "How many lamps are there?",
    "When is lamp 11 checked?",
    "Summarise the handbook.",
    "What follows section 12?",
]


def main() -> None:
    llm = LLM(sys.argv[1], dtype="bfloat16", enforce_eager=True, max_model_len=2048)
    both = [GREEDY, SAMPLED]
    llm.chat([[{"role": "user", "content": text}] for text in CHAT], both * 4, use_tqdm=False)
    llm.generate(PLAIN, both * 4, use_tqdm=False)
    prompts = [f"{HANDBOOK}\n\nQuestion: {question}\nAnswer:" for question in QUESTIONS]
    llm.generate(prompts[:1], GREEDY, use_tqdm=False)
    llm.generate(prompts[1:], (both * 4)[1:], use_tqdm=False)


if __name__ == "__main__":
    main()
