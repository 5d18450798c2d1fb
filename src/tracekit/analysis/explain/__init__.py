"""Why two traces differ: causes, their evidence, and their shares."""

from tracekit.analysis.explain.base import Cause, Claim, Question, Undecided, Variant
from tracekit.analysis.explain.explanation import Explanation, Finding, explain

__all__ = ["Cause", "Claim", "Explanation", "Finding", "Question", "Undecided", "Variant", "explain"]
