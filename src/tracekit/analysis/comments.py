"""Comments on columns that come from the trace format's definitions."""

from __future__ import annotations

from collections.abc import Iterator

from tracekit import schema
from tracekit.analysis.quoting import literal


def of_tables() -> Iterator[str]:
    """Yields a COMMENT ON for each column of the views over one trace."""
    for name in schema.table_names():
        for view in (name, "tokens_all") if name == "tokens" else (name,):
            for column in schema.table(name).columns:
                yield f"COMMENT ON COLUMN {view}.{column.name} IS {literal(_describe(column))};"


def of_pairs() -> Iterator[str]:
    """Yields a COMMENT ON for each a_ and b_ column of `pairs`."""
    for side in ("a", "b"):
        for column in schema.table("tokens").columns:
            text = literal(f"{side.upper()}: {_describe(column)}")
            yield f"COMMENT ON COLUMN pairs.{side}_{column.name} IS {text};"


def _describe(column: schema.Column) -> str:
    """Returns a column's meaning, unit, shape and known values as one text."""
    text = column.meaning
    if column.unit:
        text += f" Unit: {column.unit}."
    if column.shape:
        text += f" Shape: {column.shape}."
    if column.values:
        text += " Values: " + "; ".join(f"{value} ({meaning})" for value, meaning in column.values.items()) + "."
    return text
