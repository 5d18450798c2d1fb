"""Reads what trainers already write: a file a format, each found by name when it is wanted."""

from tracekit.trainers.importers.base import importer_names
from tracekit.trainers.importers.driver import ImportSummary, import_files

__all__ = ["ImportSummary", "import_files", "importer_names"]
