"""Describe, aggregate and correlate tabular data with pandas: a handler that reads once and computes a lot.

    TaskQueue(handlers={"analyze": "handlers/analyze_data.py"})
    queue.add("analyze", {
        "source": "sales.csv",          # a CSV file with a header; or "records": [{"city": "Bonn", "price": 3}, ...]
        "dates": ["day"],               # optional: columns to read as ISO 8601 dates
        "operations": [
            {"op": "describe", "columns": ["price", "city"]},
            {"op": "aggregate", "by": ["city"], "values": {"price": ["mean", "sum"]}},
            {"op": "correlate", "columns": ["price", "pieces"], "method": "spearman"},
        ],
    })

    source or records -> frame --+--> operation --+--> results, in order, as plain JSON
                                 +--> operation --+

A source must lie below the directories that the node names in DTQ_FILES (see dtq.files): anyone who can add a
task of this type can read any CSV file there. Errors quote nothing of a file.

The handler only reads, so a task may run twice. JSON has no NaN and no infinity: both become null. Dates and
durations become ISO 8601 text. pandas is imported with this file, so only workers that run such tasks load it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype
from pandas.errors import EmptyDataError, ParserError

from dtq.files import reading

MAX_BYTES = 100_000_000  # of a file; its frame takes several times as much memory
MAX_CELLS = 10_000_000  # of records: each key of a record is a column for all records
MAX_GROUPS = 10_000
MAX_NAMES = 100  # columns of one operation
NUMERIC = ("sum", "mean", "median", "std", "var")  # these need numbers
FUNCTIONS = ("count", "nunique", "min", "max", *NUMERIC)
METHODS = ("pearson", "spearman", "kendall")


def execute(payload: Any, context: Any) -> dict[str, Any] | None:
    """Return the number of rows, the names of the columns, the result of each operation, and the seconds taken.

    Raises ValueError for a payload that can never work and for data that do not fit it (the message names the field,
    the value and what is allowed); OSError if the file cannot be read. A cancelled task stops before its next operation
    and returns None.
    """
    started = time.perf_counter()
    operations = check_payload(payload)
    steps = len(operations) + 1  # reading is a step too
    frame = read(payload)
    check_columns(operations, frame)
    context.progress(100 / steps, f"read {len(frame)} rows, {len(frame.columns)} columns")
    results = []
    for done, (name, options) in enumerate(operations):
        if context.cancelled:
            return None
        result, note = run(f"operations[{done}]", OPERATIONS[name][0], frame, options)
        results.append({"op": name, **result})
        context.progress(100 * (done + 2) / steps, f"{name}: {note}")
    seconds = round(time.perf_counter() - started, 6)
    return {"rows": len(frame), "columns": list(frame.columns), "results": results, "seconds": seconds}


def run(where: str, operation: Callable[..., Result], frame: pd.DataFrame, options: dict[str, Any]) -> Result:
    try:
        with np.errstate(all="ignore"):  # infinite numbers have no mean; the result is null
            return operation(frame, **options)
    except TypeError:  # such as text among numbers; pandas' message may quote it
        raise ValueError(f"{where} does not fit the data: it is not supported for the values of a column") from None


# The payload: unknown fields are refused, and all fields are checked before a file is touched.


class Rule(NamedTuple):
    """What a field may hold: in words for the error message, and as a test."""

    allowed: str
    accepts: Callable[[Any], bool]


def one_of(names: Collection[str]) -> Rule:
    return Rule(f"one of {', '.join(names)}", lambda v: isinstance(v, str) and v in names)


def names(low: int, high: int = MAX_NAMES) -> Rule:
    return Rule(f"a list of {low} to {high} names, each once", lambda v: are_names(v) and low <= len(v) <= high)


def are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value) and len(set(value)) == len(value)


def are_values(value: Any) -> bool:
    """Return True if each column comes with a list of functions."""
    if not isinstance(value, dict) or not 1 <= len(value) <= MAX_NAMES:
        return False
    return all(are_names(wanted) and wanted and set(wanted) <= set(FUNCTIONS) for wanted in value.values())


PAYLOAD = {
    "source": Rule("the path of a CSV file", lambda v: isinstance(v, str) and v != ""),
    "records": Rule(
        "a list of at least one object",
        lambda v: isinstance(v, list) and v != [] and all(isinstance(row, dict) for row in v),
    ),
    "dates": names(0),
    "operations": Rule("a list of 1 to 32", lambda v: isinstance(v, list) and 1 <= len(v) <= 32),
}


def check_payload(payload: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return the operations in order, each as its name and its options."""
    check_fields("payload", payload, PAYLOAD, optional=("source", "records", "dates"))
    if ("source" in payload) == ("records" in payload):
        given = "both source and records" if "source" in payload else "neither source nor records"
        raise ValueError(f"payload has {given}; allowed: exactly one of them")
    check_records(payload.get("records", []))
    return [check_operation(f"operations[{n}]", given) for n, given in enumerate(payload["operations"])]


def check_records(records: list[dict[str, Any]]) -> None:
    for n, row in enumerate(records):
        for field, value in row.items():
            if isinstance(value, (list, dict)):
                raise refusal(f"records[{n}].{field}", value, "a number, text, true, false or null")
    columns = {field for row in records for field in row}
    if len(records) * len(columns) > MAX_CELLS:
        raise refusal("records: rows x columns", (len(records), len(columns)), f"at most {MAX_CELLS:,} cells")


def check_operation(where: str, given: Any) -> tuple[str, dict[str, Any]]:
    name: Any = given.get("op") if isinstance(given, dict) else None
    rule = one_of(OPERATIONS)
    check_fields(where, given, {"op": rule} | (OPERATIONS[name][1] if rule.accepts(name) else {}))
    return given["op"], {field: value for field, value in given.items() if field != "op"}


def check_fields(where: str, given: Any, rules: dict[str, Rule], optional: Collection[str] = ()) -> None:
    if not isinstance(given, dict):
        raise refusal(where, given, f"an object with {', '.join(rules)}")
    for field, rule in rules.items():
        if field not in given and field not in optional:
            raise ValueError(f"{where}.{field} is missing; allowed: {rule.allowed}")
        if field in given and not rule.accepts(given[field]):
            raise refusal(f"{where}.{field}", given[field], rule.allowed)
    for field in given:
        if field not in rules:
            raise refusal(f"{where}.{field}", given[field], f"only {', '.join(rules)}")


def refusal(field: str, value: object, allowed: str) -> ValueError:
    return ValueError(f"{field} is {value!r:.200}; allowed: {allowed}")


# The data.


def read(payload: dict[str, Any]) -> pd.DataFrame:
    """Return all rows, at least one, with the columns named by `dates` as dates."""
    frame = read_csv(payload["source"]) if "source" in payload else pd.DataFrame(payload["records"])
    frame.attrs["quotable"] = "records" in payload  # error messages may quote them: the sender knows them
    if frame.empty:
        rows, columns = frame.shape
        raise ValueError(f"the data have {rows} rows and {columns} columns; allowed: at least one of each")
    for name in payload.get("dates", []):
        check_column("payload.dates", name, frame)
        frame[name] = as_dates(frame[name])
    return frame


def read_csv(source: str) -> pd.DataFrame:
    """Read the file, which must be UTF-8 text, in one go, so that it cannot grow past its limit meanwhile."""
    with reading(source) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise refusal("payload.source", source, f"a file of at most {MAX_BYTES:,} bytes")
    try:
        frame = pd.read_csv(BytesIO(data), low_memory=False)
    except (EmptyDataError, ParserError) as error:  # the file is empty, or its rows differ in length
        raise ValueError(f"source {source!r} is no readable CSV: {str(error).strip()}") from None
    except ValueError:  # pandas' message may quote the file
        raise ValueError(f"source {source!r} is no readable CSV: it is not UTF-8 text") from None
    if not isinstance(frame.index, pd.RangeIndex):  # pandas would use the first column as row labels
        raise ValueError(f"source {source!r} is no readable CSV: its rows have more fields than its header")
    return frame


def as_dates(column: pd.Series) -> pd.Series:
    if is_numeric_dtype(column) and column.notna().any():
        raise refusal(f"dates: column {column.name!r}", column.dtype.name, "ISO 8601 text such as 2024-12-31")
    try:
        return pd.to_datetime(column, format="ISO8601")
    except ValueError:  # pandas' message quotes the value
        wanted = "ISO 8601 dates with the same offset from UTC, or all without"
        raise ValueError(f"dates: column {column.name!r} must hold {wanted}") from None


def check_columns(operations: Iterable[tuple[str, dict[str, Any]]], frame: pd.DataFrame) -> None:
    for n, (_, options) in enumerate(operations):
        for field in ("columns", "by", "values"):
            for name in options.get(field, ()):
                check_column(f"operations[{n}].{field}", name, frame)


def check_column(where: str, name: str, frame: pd.DataFrame) -> None:
    if name not in frame.columns:
        there = ", ".join(frame.columns) if frame.attrs["quotable"] else f"{len(frame.columns)} with other names"
        raise ValueError(f"{where} names {name!r}; the columns there are: {there:.1000}")


def check_number(where: str, column: pd.Series) -> None:
    if not is_numeric_dtype(column):
        raise ValueError(f"{where} needs numbers; column {column.name!r} holds {column.dtype.name}")


# The operations: each takes a frame and its options, and returns its result and a note for the progress.

Result = tuple[dict[str, Any], str]


def describe(frame: pd.DataFrame, columns: list[str]) -> Result:
    """Describe columns. Numbers and dates: count, mean, spread and quartiles; others: count, unique, top and its
    frequency."""
    table = {name: plain_dict(frame[name].describe()) for name in columns}
    return {"columns": table}, f"{len(columns)} columns"


def aggregate(frame: pd.DataFrame, by: list[str], values: dict[str, list[str]]) -> Result:
    """Return, for each group in order, its common values (null counts as a value) and its figures."""
    for name, wanted in values.items():
        for function in set(wanted).intersection(NUMERIC):
            check_number(f"aggregate with {function!r}", frame[name])
    grouped = frame.groupby(by, dropna=False)
    if grouped.ngroups > MAX_GROUPS:
        raise refusal(f"aggregate: the number of groups by {by}", grouped.ngroups, f"at most {MAX_GROUPS:,}")
    table = grouped.agg(values)
    groups: list[dict[str, Any]] = [{"by": {}, "values": {name: {} for name in values}} for _ in range(len(table))]
    for name in by:
        for group, value in zip(groups, table.index.get_level_values(name), strict=True):
            group["by"][name] = plain(value)
    for name, function in table.columns:
        for group, value in zip(groups, table[name, function], strict=True):
            group["values"][name][function] = plain(value)
    return {"groups": groups}, f"{len(groups)} groups"


def correlate(frame: pd.DataFrame, columns: list[str], method: str) -> Result:
    """Return a matrix of coefficients from -1 to 1. Each pair of columns uses the rows in which both have a number."""
    for name in columns:
        check_number("correlate", frame[name])
    try:
        matrix = frame[columns].corr(method)
    except ImportError as error:
        raise RuntimeError(f"{method} needs scipy beside pandas {pd.__version__}: pip install scipy") from error
    table = {name: plain_dict(matrix[name]) for name in columns}
    return {"method": method, "matrix": table}, f"{len(columns)} columns, {method}"


OPERATIONS: dict[str, tuple[Callable[..., Result], dict[str, Rule]]] = {
    "describe": (describe, {"columns": names(1)}),
    "aggregate": (
        aggregate,
        {
            "by": names(1, 10),
            "values": Rule(f"an object of columns, each with a list of {', '.join(FUNCTIONS)}", are_values),
        },
    ),
    "correlate": (correlate, {"columns": names(2), "method": one_of(METHODS)}),
}


# From pandas to JSON.


def plain_dict(series: pd.Series) -> dict[str, Any]:
    return {str(name): plain(value) for name, value in series.items()}


def plain(value: Any) -> Any:
    """Return a cell as a value that JSON can hold."""
    if value is None or pd.isna(value):
        return None
    if isinstance(value, (pd.Timestamp, pd.Timedelta)):
        return value.isoformat()
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return str(value)  # an integer too long for any store to keep as a number
    return None if isinstance(value, float) and not math.isfinite(value) else value
