"""Asks one trace, or compares two, in SQL."""

from tracekit.analysis.alignment import Alignment, Unaligned
from tracekit.analysis.pairing import Pairing
from tracekit.analysis.result import Result
from tracekit.analysis.session import Session, connect, requests_where

__all__ = ["Alignment", "Pairing", "Result", "Session", "Unaligned", "connect", "requests_where"]
