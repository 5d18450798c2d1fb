"""Asks one trace, or compares two, in SQL."""

from tracekit.analysis.alignment import Alignment
from tracekit.analysis.result import Result
from tracekit.analysis.session import Session, connect, requests_where

__all__ = ["Alignment", "Result", "Session", "connect", "requests_where"]
