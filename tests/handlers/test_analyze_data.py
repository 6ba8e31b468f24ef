"""handlers/analyze_data.py: its figures equal those of pandas, as plain JSON, and its errors name what is wrong."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pandas as pd
import pytest
from handler_lab import FakeContext, load
from hypothesis import given, settings
from hypothesis import strategies as st

from dtq import TaskQueue
from dtq.errors import TaskFailed

PATH = Path(__file__).parents[2] / "handlers" / "analyze_data.py"
RECORDS = [
    {"city": "Bonn", "price": 3, "pieces": 1, "day": "2024-01-01", "paid": True},
    {"city": "Kiel", "price": 2.5, "pieces": 4, "day": "2024-03-01", "paid": False},
    {"city": None, "price": None, "pieces": 2, "day": None, "paid": True},
    {"city": "Bonn", "price": 9, "pieces": 7, "paid": True},
    {"city": "Bonn", "price": 1, "pieces": 7, "day": "2024-02-01", "paid": False},
]
NUMBERS = ["price", "pieces"]
DESCRIBE = {"op": "describe", "columns": ["price"]}
AGGREGATE = {"op": "aggregate", "by": ["city"], "values": {"price": ["sum"]}}
CORRELATE = {"op": "correlate", "columns": NUMBERS, "method": "pearson"}


@pytest.fixture(autouse=True)
def allowed(tmp_path, monkeypatch):
    """Let handlers touch only files below `tmp_path`, which is also the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DTQ_FILES", str(tmp_path))


@pytest.fixture(scope="module")
def handler():
    return load("analyze_data")


@pytest.fixture
def context():
    return FakeContext()


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "sales.csv"
    pd.DataFrame(RECORDS).to_csv(path, index=False)
    return path


@pytest.fixture(params=["records", "source"])
def data(request, source):
    """The same data twice: as part of a payload, and as pandas reads them."""
    if request.param == "records":
        return {"records": RECORDS}, pd.DataFrame(RECORDS)
    return {"source": str(source)}, pd.read_csv(source)


def analyze(handler, given, *operations, **options):
    result = handler.execute({**given, "operations": list(operations), **options}, FakeContext())
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    return [{key: value for key, value in part.items() if key != "op"} for part in result["results"]]


def same(ours, theirs):
    """Return True if our cell equals the cell of pandas."""
    if pd.isna(theirs):
        return ours is None
    if isinstance(theirs, pd.Timestamp):
        return ours == theirs.isoformat()
    if isinstance(theirs, float) and not math.isfinite(theirs):
        return ours is None
    return ours == theirs


def same_table(ours, theirs):
    return list(ours) == list(theirs.index) and all(same(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("column", ["price", "pieces", "city", "paid", "day"])
def test_describe_returns_the_figures_of_pandas(handler, data, column):
    (result,) = analyze(handler, data[0], {"op": "describe", "columns": [column]})
    assert list(result["columns"]) == [column]
    assert same_table(result["columns"][column], data[1][column].describe())


def test_columns_named_by_dates_are_read_as_dates(handler, data):
    day = pd.to_datetime(data[1]["day"])
    aggregate = {"op": "aggregate", "by": ["paid"], "values": {"day": ["min", "max", "nunique"]}}
    described, aggregated = analyze(handler, data[0], {"op": "describe", "columns": ["day"]}, aggregate, dates=["day"])
    assert same_table(described["columns"]["day"], day.describe())
    assert described["columns"]["day"]["min"] == "2024-01-01T00:00:00"
    assert [group["values"]["day"] for group in aggregated["groups"]] == [
        {"min": "2024-02-01T00:00:00", "max": "2024-03-01T00:00:00", "nunique": 2},
        {"min": "2024-01-01T00:00:00", "max": "2024-01-01T00:00:00", "nunique": 1},
    ]


@pytest.mark.parametrize("by", [["city"], ["paid"], ["city", "paid"], ["price"], ["day", "city"]])
def test_aggregate_returns_the_figures_of_pandas_and_keeps_groups_without_a_value(handler, data, by):
    values = {"price": list(handler.FUNCTIONS), "pieces": ["mean"], "day": ["min", "max", "count", "nunique"]}
    (result,) = analyze(handler, data[0], {"op": "aggregate", "by": by, "values": values}, dates=["day"])
    frame = data[1].assign(day=pd.to_datetime(data[1]["day"]))
    table = frame.groupby(by, dropna=False).agg(values)
    assert len(result["groups"]) == len(table) == len(frame[by].drop_duplicates())
    for group, (_, row), (_, keys) in zip(
        result["groups"], table.iterrows(), table.index.to_frame().iterrows(), strict=True
    ):
        assert same_table(group["by"], keys)
        assert {(c, f) for c, figures in group["values"].items() for f in figures} == set(table.columns)
        assert all(same(group["values"][c][f], row[c, f]) for c, f in table.columns)


def test_a_group_is_named_by_its_values_including_null(handler):
    (result,) = analyze(handler, {"records": RECORDS}, AGGREGATE)
    assert result["groups"] == [
        {"by": {"city": "Bonn"}, "values": {"price": {"sum": 13}}},
        {"by": {"city": "Kiel"}, "values": {"price": {"sum": 2.5}}},
        {"by": {"city": None}, "values": {"price": {"sum": 0}}},
    ]


@pytest.mark.parametrize("method", ["pearson", "spearman", "kendall"])
def test_correlate_returns_the_figures_of_pandas(handler, data, method):
    columns = [*NUMBERS, "paid"]
    try:
        expected = data[1][columns].corr(method)
    except ImportError:
        pytest.skip("this pandas needs scipy for it")
    (result,) = analyze(handler, data[0], CORRELATE | {"columns": columns, "method": method})
    assert result["method"] == method
    assert list(result["matrix"]) == columns
    assert all(same_table(result["matrix"][name], expected[name]) for name in columns)


def test_spearman_is_pearson_of_the_ranks(handler):
    frame = pd.DataFrame({"a": [3, 1, 4, 1, 5], "b": [2, 7, 1, 8, 2]})
    records = frame.to_dict("records")
    (result,) = analyze(handler, {"records": records}, CORRELATE | {"columns": ["a", "b"], "method": "spearman"})
    assert result["matrix"]["a"]["b"] == pytest.approx(frame.rank().corr().loc["a", "b"])


def test_a_method_that_needs_scipy_names_it_in_its_error(handler, monkeypatch):
    def without_scipy(frame, method):
        raise ImportError("No module named 'scipy'")

    monkeypatch.setattr(pd.DataFrame, "corr", without_scipy)
    with pytest.raises(RuntimeError, match=r"kendall needs scipy beside pandas .*: pip install scipy"):
        analyze(handler, {"records": RECORDS}, CORRELATE | {"method": "kendall"})


CELLS = {
    "n": st.none() | st.integers(-(2**53), 2**53),
    "x": st.none() | st.floats(allow_nan=False, allow_infinity=False),
    "t": st.none() | st.text(max_size=2),
    "b": st.booleans(),
}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.fixed_dictionaries({}, optional=CELLS), min_size=1, max_size=6).filter(any))
def test_the_figures_equal_those_of_pandas_for_any_records(handler, records):
    frame = pd.DataFrame(records)
    columns = list(frame.columns)
    aggregate = {"op": "aggregate", "by": columns[:2], "values": {name: ["count", "nunique"] for name in columns}}
    described, aggregated = analyze(handler, {"records": records}, {"op": "describe", "columns": columns}, aggregate)
    with handler.np.errstate(all="ignore"):
        assert all(same_table(described["columns"][name], frame[name].describe()) for name in columns)
    table = frame.groupby(columns[:2], dropna=False).agg(aggregate["values"])
    figures = [[group["values"][c][f] for c, f in table.columns] for group in aggregated["groups"]]
    assert figures == table.to_numpy().tolist()


# --- what is not a number ---------------------------------------------------------------------------------------------


def test_what_json_cannot_hold_becomes_null_or_text(handler, tmp_path):
    path = tmp_path / "odd.csv"
    path.write_text("a,b,long\n1,inf,99999999999999999999999\n1,2,99999999999999999999999\n")
    aggregate = {"op": "aggregate", "by": ["a", "b"], "values": {"b": ["mean", "std"], "a": ["count"]}}
    correlate = CORRELATE | {"columns": ["a", "b"]}
    described, aggregated, correlated = analyze(
        handler, {"source": str(path)}, {"op": "describe", "columns": ["b", "long"]}, aggregate, correlate
    )
    figures = described["columns"]
    assert [figures["b"][name] for name in ("count", "mean", "min", "max")] == [2, None, 2, None]
    assert figures["long"]["top"] == "99999999999999999999999"
    assert aggregated["groups"] == [
        {"by": {"a": 1, "b": 2}, "values": {"b": {"mean": 2, "std": None}, "a": {"count": 1}}},
        {"by": {"a": 1, "b": None}, "values": {"b": {"mean": None, "std": None}, "a": {"count": 1}}},
    ]
    assert correlated["matrix"]["a"] == {"a": None, "b": None}


# --- progress and cancelling ------------------------------------------------------------------------------------------


def test_progress_rises_to_100_with_a_note_for_each_step(handler, context):
    result = handler.execute({"records": RECORDS, "operations": [DESCRIBE, AGGREGATE, CORRELATE]}, context)
    assert context.reports == [
        (25, "read 5 rows, 5 columns"),
        (50, "describe: 1 columns"),
        (75, "aggregate: 3 groups"),
        (100, "correlate: 2 columns, pearson"),
    ]
    assert 0 < result.pop("seconds") < 60
    assert [part["op"] for part in result.pop("results")] == ["describe", "aggregate", "correlate"]
    assert result == {"rows": 5, "columns": ["city", "price", "pieces", "day", "paid"]}


def test_a_cancelled_task_stops_before_the_next_operation(handler):
    context = FakeContext(cancel_after=2)
    assert handler.execute({"records": RECORDS, "operations": [DESCRIBE] * 3}, context) is None
    assert len(context.reports) == 2


# --- what is refused --------------------------------------------------------------------------------------------------

FITS = {"records": RECORDS, "operations": [DESCRIBE]}
WRONG = {"op": "describe", "columns": ["pric"]}
NEITHER = {"operations": [DESCRIBE]}


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (None, "payload is None; allowed: an object with source, records, dates, operations"),
        (NEITHER, "payload has neither source nor records; allowed: exactly one of them"),
        (FITS | {"source": "a.csv"}, "payload has both source and records; allowed: exactly one of them"),
        (NEITHER | {"source": 7}, "payload.source is 7; allowed: the path of a CSV file"),
        (FITS | {"records": []}, "payload.records is []; allowed: a list of at least one object"),
        (FITS | {"records": [1]}, "payload.records is [1]; allowed: a list of at least one object"),
        (
            FITS | {"records": [{"price": 1}, {"price": [2]}]},
            "records[1].price is [2]; allowed: a number, text, true, false or null",
        ),
        (
            FITS | {"records": [{str(n): n} for n in range(3163)]},
            "records: rows x columns is (3163, 3163); allowed: at most 10,000,000 cells",
        ),
        (FITS | {"records": [{}, {}]}, "the data have 2 rows and 0 columns; allowed: at least one of each"),
        (FITS | {"dates": "day"}, "payload.dates is 'day'; allowed: a list of 0 to 100 names"),
        (FITS | {"dates": ["dya"]}, "payload.dates names 'dya'; the columns there are: city, price, pieces, day, paid"),
        (FITS | {"dates": ["pieces"]}, "dates: column 'pieces' is 'int64'; allowed: ISO 8601 text such as 2024-12-31"),
        (FITS | {"dates": ["city"]}, "dates: column 'city' must hold ISO 8601 dates with the same offset from UTC"),
        (FITS | {"operations": []}, "payload.operations is []; allowed: a list of 1 to 32"),
        (FITS | {"operations": [DESCRIBE] * 33}, "allowed: a list of 1 to 32"),
        ({"records": RECORDS}, "payload.operations is missing; allowed: a list of 1 to 32"),
        (FITS | {"separator": ";"}, "payload.separator is ';'; allowed: only source, records, dates, operations"),
    ],
)
def test_a_refused_payload_names_the_field_the_value_and_what_is_allowed(handler, context, payload, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        handler.execute(payload, context)
    assert context.reports == []


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        ("describe", "operations[1] is 'describe'; allowed: an object with op"),
        ({}, "operations[1].op is missing; allowed: one of describe, aggregate, correlate"),
        ({"op": "guess"}, "operations[1].op is 'guess'; allowed: one of describe, aggregate, correlate"),
        ({"op": "describe"}, "operations[1].columns is missing; allowed: a list of 1 to 100 names"),
        (DESCRIBE | {"columns": []}, "operations[1].columns is []; allowed: a list of 1 to 100 names, each once"),
        (DESCRIBE | {"columns": ["a", "a"]}, "operations[1].columns is ['a', 'a']; allowed"),
        (DESCRIBE | {"columns": [["a"]]}, "operations[1].columns is [['a']]; allowed"),
        (DESCRIBE | {"by": ["city"]}, "operations[1].by is ['city']; allowed: only op, columns"),
        (AGGREGATE | {"by": "city"}, "operations[1].by is 'city'; allowed: a list of 1 to 10 names"),
        (AGGREGATE | {"values": {}}, "operations[1].values is {}; allowed: an object of columns, each with a list of"),
        (AGGREGATE | {"values": {"price": "sum"}}, "operations[1].values is {'price': 'sum'}; allowed"),
        (AGGREGATE | {"values": {"price": []}}, "operations[1].values is {'price': []}; allowed"),
        (
            AGGREGATE | {"values": {"price": ["eval"]}},
            "allowed: an object of columns, each with a list of count, nunique",
        ),
        (CORRELATE | {"columns": ["price"]}, "operations[1].columns is ['price']; allowed: a list of 2 to 100 names"),
        (CORRELATE | {"method": "tau"}, "operations[1].method is 'tau'; allowed: one of pearson, spearman, kendall"),
    ],
)
def test_a_refused_operation_names_its_place_too_and_nothing_is_read(handler, context, operation, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        handler.execute({"source": "no-such-file.csv", "operations": [DESCRIBE, operation]}, context)


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (
            WRONG,
            "operations[1].columns names 'pric'; the columns there are: city, price, pieces",
        ),
        (AGGREGATE | {"by": ["town"]}, "operations[1].by names 'town'; the columns there are: city, price, pieces"),
        (AGGREGATE | {"values": {"x": ["sum"]}}, "operations[1].values names 'x'; the columns there are: city, price"),
        (
            CORRELATE | {"columns": ["price", "x"]},
            "operations[1].columns names 'x'; the columns there are: city, price",
        ),
    ],
)
def test_an_unknown_column_is_refused_before_any_operation_runs(handler, context, data, operation, message):
    if "source" in data[0]:  # whose first line the error must not quote
        message = message.partition("city")[0] + "5 with other names"
    with pytest.raises(ValueError, match=re.escape(message)):
        handler.execute(data[0] | {"operations": [DESCRIBE, operation]}, context)
    assert context.reports == []


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (
            AGGREGATE | {"values": {"city": ["mean"]}},
            r"aggregate with 'mean' needs numbers; column 'city' holds (str|object)",
        ),
        (CORRELATE | {"columns": ["price", "city"]}, r"correlate needs numbers; column 'city' holds (str|object)"),
        (
            AGGREGATE | {"by": ["pieces"], "values": {"mixed": ["max"]}},
            r"operations\[0\] does not fit the data: .*not supp",
        ),
    ],
)
def test_an_operation_that_does_not_fit_a_column_names_it(handler, operation, message):
    records = [{**row, "mixed": mixed, "pieces": 1} for row, mixed in zip(RECORDS, [1, "a", 2, "b", 3], strict=True)]
    with pytest.raises(ValueError, match=message):
        analyze(handler, {"records": records}, operation)


def test_too_many_groups_are_refused(handler):
    records = [{"city": n, "price": n} for n in range(10_001)]
    with pytest.raises(ValueError, match=r"the number of groups by \['city'\] is 10001; allowed: at most 10,000"):
        analyze(handler, {"records": records}, AGGREGATE)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no readable CSV: No columns to parse from file"),
        (b"price\n", "the data have 0 rows and 1 columns; allowed: at least one of each"),
        (b"\x89PNG\r\n\x1a\n\xff", "is no readable CSV: it is not UTF-8 text"),
        (
            b"price,a\n1,2\n1,2,3\n",
            "is no readable CSV: Error tokenizing data. C error: Expected 2 fields in line 3, saw 3",
        ),
        (b"price,a\n1,2,3\n1,2,3\n", "is no readable CSV: its rows have more fields than its header"),
        (b"price\n" + b"1\n" * 500, "allowed: a file of at most 1,000 bytes"),
    ],
)
def test_a_file_that_is_not_csv_is_refused_by_name(handler, tmp_path, monkeypatch, content, message):
    monkeypatch.setattr(handler, "MAX_BYTES", 1000)
    path = tmp_path / "data.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        analyze(handler, {"source": str(path)}, DESCRIBE)


def test_a_file_of_the_largest_size_is_read(handler, tmp_path, monkeypatch):
    monkeypatch.setattr(handler, "MAX_BYTES", 1006)
    path = tmp_path / "data.csv"
    path.write_text("price\n" + "1\n" * 500)
    (result,) = analyze(handler, {"source": str(path)}, DESCRIBE)
    assert result["columns"]["price"]["count"] == 500


@pytest.mark.parametrize("source", ["no-such-file.csv", "http://127.0.0.1:9/data.csv"])
def test_a_missing_source_is_an_oserror(handler, source):
    with pytest.raises(FileNotFoundError, match=re.escape(Path(source).name)):
        analyze(handler, {"source": source}, DESCRIBE)


def test_a_compressed_file_is_not_unpacked(handler, tmp_path):
    path = tmp_path / "data.csv.gz"
    pd.DataFrame(RECORDS).to_csv(path)
    with pytest.raises(ValueError, match="is no readable CSV"):
        analyze(handler, {"source": str(path)}, DESCRIBE)


# --- through the queue ------------------------------------------------------------------------------------------------


def test_a_worker_loads_pandas_only_to_run_this_handler(tmp_path, source):
    probe = tmp_path / "probe.py"
    probe.write_text("import sys\ndef execute(payload, context): return 'pandas' in sys.modules")
    with TaskQueue(tmp_path / "q.db", {"analyze": PATH, "probe": probe}, pool_size=1) as queue:
        assert queue.add("probe").result(60) is False
        handle = queue.add("analyze", {"source": str(source), "operations": [DESCRIBE, AGGREGATE, CORRELATE]})
        results, task = handle.result(60)["results"], handle.task
        assert queue.add("probe").result(60) is True
        with pytest.raises(TaskFailed, match="names 'pric'; the columns there are: city, price"):
            queue.add("analyze", FITS | {"operations": [WRONG]}, max_attempts=1).result(60)
    frame = pd.read_csv(source)
    assert results[0]["columns"]["price"] == frame["price"].describe().to_dict()
    assert [group["values"]["price"]["sum"] for group in results[1]["groups"]] == [13, 2.5, 0]
    assert results[2]["matrix"] == frame[NUMBERS].corr().to_dict()
    assert (task.progress, task.note) == (100, "correlate: 2 columns, pearson")
