"""The prompts of the comparison of releases: five kinds, written for it, and how each is sampled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

KINDS = ("short", "long", "multi-turn", "code", "other scripts")


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        kind: of the prompt, one of `KINDS`.
        prompt: as the engine gets it.
        sampling: arguments of SamplingParams.
    """

    kind: str
    prompt: str
    sampling: dict[str, Any]


_SAMPLINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 1.0},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 0.6, "top_p": 0.95, "top_k": 20},
    {"temperature": 1.0},
    {"temperature": 0.9},
    {"temperature": 0.7, "repetition_penalty": 1.1},
    {"temperature": 0.0},
    {"temperature": 1.2, "min_p": 0.05},
    {"temperature": 1.0, "top_p": 0.95},
    {"temperature": 0.8, "presence_penalty": 0.3, "frequency_penalty": 0.2},
    {"temperature": 1.0},
)

_THINGS = (
    *("the tide", "a compass", "bread", "a glacier", "the alphabet", "a violin", "salt", "a beehive", "the moon"),
    *("a bicycle", "chess", "a lighthouse", "rust", "a shadow", "coffee", "a map", "thunder"),
)
_SHORT = (
    "What is {}?",
    "Name three facts about {}.",
    "Write one sentence about {} for a child.",
)

_DOCUMENTS = (
    (
        "The harbour of Vell has two basins. The northern basin was dug when the town still traded in herring, and "
        "it is shallow: at low water a rowing boat touches the ground. The southern basin is younger. It was "
        "blasted out of the rock by order of the council, and ships of forty metres can turn in it. Between both "
        "stands the tower, which is white with one red band. Its lamp burns from dusk to dawn, and it is wound by "
        "hand every six hours. The keeper writes down the wind, the height of the water and each ship that passes. "
        "His book goes back for ninety years, and only eleven nights are missing from it. When fog comes in from "
        "the west he rings the bell twice a minute. "
    ),
    (
        "Minutes of the gardening club, read and agreed. Present were the treasurer, the secretary and nine "
        "members. The treasurer said that the greenhouse had cost less than was feared, since the glass came from "
        "an old school. The secretary asked who would water the tomatoes in August, and three hands went up. There "
        "was a long talk about snails. One member holds that beer in saucers is the best remedy, another one "
        "swears by copper wire, and a third one picks them up at night with a lantern. It was put to a vote, and "
        "the lantern won. Seeds will be shared on the first Saturday of each month, beans before peas. The next "
        "meeting is in the shed, with cake. "
    ),
    (
        "You are the assistant of a railway company. Answer in short sentences, and never promise what you do not "
        "know. Tickets may be returned until one day before the journey; then half of the price is paid back. A "
        "seat by the window is two coins more. Children under six travel free where they sit on a lap. Dogs need a "
        "ticket of their own, cats do not, and goldfish are carried at their owner's risk. Trains to the coast "
        "leave at ten past the hour from platform four, trains to the mountains at half past from platform nine. "
        "If a train is late by more than an hour, the company gives a voucher for soup. Bicycles go into the last "
        "carriage, at most twelve of them. "
    ),
    (
        "Notes on the machine. It has three shafts, a drum and a brake. The first shaft takes power from the wheel "
        "and turns sixty times a minute. The second one is geared down by four, and drives the drum. The third one "
        "runs backwards and works the pump. Oil is filled in at the top, a cup a week, and drained at the bottom. "
        "If the drum squeaks, the felt is worn and must be changed; if it knocks, stop at once and look at the "
        "teeth of the second gear. The brake holds two tonnes when it is dry, and about half of that in the rain. "
        "Nobody has measured what it holds in snow. Write down each repair with its date and your name, so that "
        "the next one knows what was done and does not do it again. "
    ),
)
_QUESTIONS = (
    "In one sentence, what is this text about?",
    "Which number stands in it first, and what does it count?",
    "Who is mentioned?",
    "Ask a question that the text answers.",
    "Continue the text.",
)

_TALKS = (
    ("I have four eggs and some flour. What can I cook?", "Pancakes, for example.", "And without milk?"),
    ("My bicycle makes a noise.", "What kind of noise, and when?", "A click, each time the pedal is at the top."),
    ("Is seven a prime number?", "Yes. Only one and seven divide it.", "And ninety-one?"),
    ("Help me name my cat.", "Is it calm or wild?", "It sleeps all day and is grey."),
    ("Which is longer, a mile or a kilometre?", "A mile.", "By how much, in metres?"),
    ("I cannot sleep.", "How long has that been so?", "For three nights, since the neighbours have a drum."),
    ("Translate 'good evening' into French.", "Bonsoir.", "Now into Spanish and Italian."),
    ("Plan a walk of two hours.", "In a town or in a forest?", "In a forest with a lake, and back by noon."),
)
_SYSTEMS = (
    "You are a helpful assistant.",
    "Answer as briefly as you can.",
    "You are a patient teacher who always gives one example.",
    "You speak like a sailor.",
    "Answer in the form of a list.",
)

_CODE = (
    'def {name}(values: list[int]) -> int:\n    """Return {what}."""\n',
    "// {what}\nfunction {name}(values) {{\n",
    "/* {what} */\nint {name}(const int *values, size_t n)\n{{\n",
    "-- {what}\nCREATE FUNCTION {name}(v INTEGER[]) RETURNS INTEGER AS $$\n",
    "# {what}\n{name}() {{\n  local total=0\n",
)
_TASKS = (
    ("largest_gap", "the largest difference between neighbours"),
    ("count_even", "how many values are even"),
    ("sum_of_squares", "the sum of all squares"),
    ("second_largest", "the second largest value"),
    ("longest_run", "the length of the longest run of equal values"),
    ("num_inversions", "the number of pairs in the wrong order"),
    ("product_mod", "the product modulo 997"),
    ("first_missing", "the smallest positive number that is missing"),
    ("num_peaks", "how many values are larger than both neighbours"),
)

_SCRIPTS = (
    ("今天天气很好，我想去公园", "请用一句话解释什么是重力。", "春天来了，河边的柳树"),
    ("昔、小さな村に", "東京から京都まで行く方法を教えてください。", "猫が好きな理由は"),
    ("오늘 아침에 나는", "서울에서 가장 높은 건물은", "가을이 되면 나뭇잎이"),
    ("Сегодня утром я вышел", "Объясни простыми словами, что такое магнит.", "Зимой река замерзает, и"),
    ("Το πρωί πήγα στη θάλασσα", "Εξήγησε τι είναι ο άνεμος.", "Η γάτα κοιμάται πάνω"),
    ("في الصباح الباكر خرج", "اشرح معنى كلمة صداقة.", "القمر يدور حول"),
    ("הבוקר יצאתי אל הים", "הסבר מהו מצפן.", "החתול ישן על"),
    ("आज सुबह मैं नदी के", "चुंबक क्या होता है?", "बारिश के बाद आसमान"),
    ("เช้านี้ฉันไปตลาด", "อธิบายว่าลมคืออะไร", "แมวนอนอยู่บน"),
    ("আজ সকালে আমি নদীর", "চাঁদ কেন উজ্জ্বল?", "বৃষ্টির পরে"),
    ("დღეს დილით ზღვაზე", "რა არის კომპასი?", "კატას სძინავს"),
    ("Այսօր առավոտյան ես", "Ի՞նչ է քամին։", "Կատուն քնած է"),
    ("இன்று காலை நான்", "காந்தம் என்றால் என்ன?", "மழை பெய்த பிறகு"),
    ("Сьогодні вранці я", "Що таке компас?", "Після дощу небо"),
    ("Buổi sáng tôi đi ra biển", "La bàn là gì?", "Sau cơn mưa, bầu trời"),
)


def requests(num: int | None = None, num_tokens: int = 28) -> list[Request]:
    """Returns the requests, kinds in turn.

    Args:
        num: only so many.
        num_tokens: of an output, on average.
    """
    by_kind = [list(_short()), list(_long()), list(_multi_turn()), list(_code()), list(_other_scripts())]
    found = []
    for place in range(max(map(len, by_kind))):
        for kind, prompts in zip(KINDS, by_kind, strict=True):
            if place < len(prompts):
                index = len(found)
                sampling = _SAMPLINGS[index % len(_SAMPLINGS)]
                # Some outputs are longer, so that requests do not end together.
                own = {"seed": index, "max_tokens": max(1, num_tokens - 4 + index % 9), "ignore_eos": True}
                found.append(Request(kind, prompts[place], {**sampling, **own}))
    return found[:num]


def _short() -> Iterator[str]:
    for pattern in _SHORT:
        for thing in _THINGS:
            yield _chat((("user", pattern.format(thing)),))


def _long() -> Iterator[str]:
    # A KV block is of 128 tokens on a CPU, and only whole ones are shared: one of some texts, two of those given twice.
    for question in _QUESTIONS:
        for place, text in enumerate(_DOCUMENTS):
            yield _chat((("system", (1 + place % 2) * text), ("user", question)))


def _multi_turn() -> Iterator[str]:
    for system in _SYSTEMS:
        for first, answer, second in _TALKS:
            yield _chat((("system", system), ("user", first), ("assistant", answer), ("user", second)))


def _code() -> Iterator[str]:
    for name, what in _TASKS:
        for pattern in _CODE:
            yield pattern.format(name=name, what=what)


def _other_scripts() -> Iterator[str]:
    for place in range(3):
        for texts in _SCRIPTS:
            yield texts[place]


def _chat(turns: tuple[tuple[str, str], ...]) -> str:
    """Returns a conversation as SmolLM2's template writes it, up to the assistant's turn."""
    text = "".join(f"<|im_start|>{role}\n{content.strip()}<|im_end|>\n" for role, content in turns)
    return f"{text}<|im_start|>assistant\n"
