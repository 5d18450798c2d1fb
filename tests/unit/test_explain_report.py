"""What is shown of impacts and of settings that differ."""

from __future__ import annotations

import json

from tracekit.analysis.explain.impact import Impact
from tracekit.analysis.explain.settings import Accounted, SettingDifference
from tracekit.report import impact, settings
from tracekit.report.console import to_bytes
from tracekit.report.values import dump_json

IMPACTS = [
    *(
        Impact(cause, "mismatch", "k2_kl", 0.5, after, 100, 4, False, False)
        for cause, after in (("temperature", 0.125), (None, 0.0))
    ),
    *(
        Impact(cause, "mismatch", "ratio_oob_fraction", 0.25, 0.25, 100, 4, False, False)
        for cause in ("temperature", None)
    ),
    *(Impact(cause, "bypass", "clip_fraction_ppo", 0.25, 0.1, 100, 4, True, False) for cause in ("temperature", None)),
    *(
        Impact(cause, "decoupled", "clip_fraction_ppo", 0.0, 0.0, 100, 4, False, False)
        for cause in ("temperature", None)
    ),
    *(
        Impact(cause, "decoupled", "icepop_masked_fraction", 0.02, None, 100, 4, True, True)
        for cause in ("temperature", None)
    ),
]

IMPACT_TABLE = """\
 metric                                                    now    without temperature   without all
 ──────────────────────────────────────────────────────────────────────────────────────────────────
 B against A
 k2_kl                                                      0.5                 0.125             0
 ratio_oob_fraction                                        0.25                  same          same
 bypass mode: current / rollout
 clip_fraction_ppo                                         0.25                   0.1           0.1
 decoupled mode: current / old, weighted by old / rollout
 icepop_masked_fraction                                    0.02                     -             -
"""

IMPACT_MARKDOWN = """\
| metric | now | without temperature | without all |
| --- | ---: | ---: | ---: |
| B against A |  |  |  |
| k2_kl | 0.5 | 0.125 | 0 |
| ratio_oob_fraction | 0.25 | same | same |
| bypass mode: current / rollout |  |  |  |
| clip_fraction_ppo | 0.25 | 0.1 | 0.1 |
| decoupled mode: current / old, weighted by old / rollout |  |  |  |
| icepop_masked_fraction | 0.02 | - | - |
"""


def lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if "─" not in line]


def test_impacts() -> None:
    assert lines(to_bytes(impact.to_table(IMPACTS)).decode()) == lines(IMPACT_TABLE)
    assert impact.to_markdown(IMPACTS) == IMPACT_MARKDOWN
    assert impact.notes(IMPACTS) == [
        "Bypass mode: no pass of policy 'current' is recorded, so B stands in for it, as at the first update",
        "Decoupled mode: no pass of policy 'old' is recorded, so B stands in for it",
        "Some tokens were not drawn at a temperature above 0: the figures describe, and predict no training",
    ]
    assert impact.notes(IMPACTS[:4]) == ["No advantages are recorded, so nothing is said of clipping"]
    assert impact.notes([]) == []
    assert json.loads(dump_json(impact.to_rows(IMPACTS)))[1] == {
        "cause": None,
        "mode": "mismatch",
        "name": "k2_kl",
        "before": 0.5,
        "after": 0.0,
        "num_tokens": 100,
        "num_sequences": 4,
        "assumed": False,
        "descriptive": False,
    }


def differs(setting: str, a: str | None, b: str | None, relevance: str, *causes: Accounted) -> SettingDifference:
    return SettingDifference(setting, "runs", a, b, None not in (a, b), relevance, None, 3, causes)


DIFFERENCES = [
    differs("dtype", "bfloat16", "float32", "precision"),
    differs(
        "prefix_caching",
        "false",
        "false, true",
        "cache",
        Accounted("prefix_cache", {"k2": 0.003}),
        Accounted("stale_kv", {"k2": 0.0001}),
    ),
    differs("seed", "1", "2", "draws"),
    differs("odd\x1b[31m", "x" * 100, "2|", "unknown"),
    differs("logprobs_mode", "raw_logprobs", None, "meaning"),
    differs("max_num_seqs", "1", None, "batching", Accounted("batch", {"k2": -0.25})),
]


def test_settings() -> None:
    assert lines(to_bytes(settings.to_table(DIFFERENCES)).decode()) == [
        ["setting", "A", "B", "matters", "for", "accounts", "for"],
        ["dtype", "bfloat16", "float32", "precision"],
        *[
            [
                "prefix_caching",
                "off",
                "off,",
                "on",
                "cache",
                "prefix_cache",
                "0.3%",
                "of",
                "k2,",
                "stale_kv",
                "under",
                "0.1%",
                "of",
                "k2",
            ]
        ],
        ["max_num_seqs", "1", "?", "batching", "batch", "-25.0%", "of", "k2"],
    ]
    assert settings.notes(DIFFERENCES) == [
        "Told by one side only: 1 setting (logprobs_mode)",
        "Not known to matter for logprobs: 2 differences more",
        "All of them: FROM setting_differences",
    ]
    assert settings.notes(DIFFERENCES[:2]) == []


def test_all_settings_in_markdown() -> None:
    assert settings.to_markdown(DIFFERENCES, everything=True).splitlines() == [
        "| setting | A | B | matters for | accounts for |",
        "| --- | --- | --- | --- | --- |",
        "| dtype | bfloat16 | float32 | precision |  |",
        "| prefix_caching | off | off, on | cache | prefix_cache 0.3% of k2, stale_kv under 0.1% of k2 |",
        "| seed | 1 | 2 | draws |  |",
        "| odd\\\\x1b\\[31m | " + "x" * 59 + "… | 2\\| | unknown |  |",
        "| logprobs_mode | raw_logprobs | ? | meaning |  |",
        "| max_num_seqs | 1 | ? | batching | batch -25.0% of k2 |",
    ]
    assert json.loads(dump_json(settings.to_rows(DIFFERENCES)))[1] == {
        "setting": "prefix_caching",
        "source": "runs",
        "a_value": "false",
        "b_value": "false, true",
        "known": True,
        "relevance": "cache",
        "reason": None,
        "num_requests": 3,
        "causes": [
            {"cause": "prefix_cache", "shares": {"k2": 0.003}},
            {"cause": "stale_kv", "shares": {"k2": 0.0001}},
        ],
    }
