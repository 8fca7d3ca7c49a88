"""Tables with named columns: rows as objects, MLflow's bodies, CSV with a header.

MLflow's forms: https://mlflow.org/docs/latest/ml/deployment/deploy-model-locally/#accepted-input-formats
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.errors import BadRequest
from serve.http.body import csv_rows

SPLIT, RECORDS = "dataframe_split", "dataframe_records"  # keys of bodies that only MLflow has
_PARAMS = "params"
_DELIMITERS = ",;\t|"


@dataclass(frozen=True, slots=True)
class Table:
    """Columns of equal length, by name, in the order of the body. A missing value is None, or nan from CSV."""

    columns: Mapping[str, Sequence[Any]]

    @property
    def rows(self) -> list[list[Any]]:
        return [list(row) for row in zip(*self.columns.values(), strict=True)]

    def ordered(self, names: Sequence[str]) -> "Table":
        """The same with the columns in this order. Raises BadRequest for a column too few or too many."""
        _same_columns(self.columns, names, "the table")
        return Table({name: self.columns[name] for name in names})


def is_mlflow(directory: Path) -> bool:
    """Whether MLflow saved the model: every answer of its server is `{"predictions": ...}`."""
    return (directory / "MLmodel").is_file()


def frame(body: Any, model_field: str) -> Table | list[Any] | None:
    """The rows of `dataframe_split` or `dataframe_records`: a list where the body names no columns.

    None for any other body. Raises BadRequest.
    """
    if not isinstance(body, dict) or not (found := body.keys() & {SPLIT, RECORDS}):
        return None
    if unknown := sorted(body.keys() - {min(found), _PARAMS, model_field}):
        raise BadRequest(f"unknown key {unknown[0][:100]!r} beside {min(found)!r}")
    if body.get(_PARAMS):
        raise BadRequest("params is unsupported: the model's method has no parameters", hint="omit params")
    return _split(body[SPLIT]) if SPLIT in found else records(body[RECORDS], RECORDS)


def by_name(body: Any, names: Sequence[str], model_field: str) -> Table | None:
    """The rows of a JSON body that names its columns, in the order of `names`; None for any other body.

    The forms: those of `frame`, objects, and an object of columns, bare or under `inputs`, `instances` or `data`.
    """
    if (found := frame(body, model_field)) is not None:
        return found.ordered(names) if isinstance(found, Table) else by_position(found, names)
    if isinstance(body, dict):
        body = {name: each for name, each in body.items() if name != model_field or name in names}
    if isinstance(body, dict) and len(body) == 1 and not body.keys() & set(names):
        body = body.get("inputs", body.get("instances", body.get("data")))
    if isinstance(body, dict):
        return by_column(body).ordered(names)
    return records(body, names=names) if isinstance(body, list) and body and isinstance(body[0], dict) else None


def _split(value: Any) -> Table | list[Any]:
    if not isinstance(value, dict) or not {"data"} <= value.keys() <= {"columns", "index", "data"}:
        raise BadRequest(f"{SPLIT} must be an object with data, and with columns and index if wanted")
    data, names = value["data"], value.get("columns")
    if not isinstance(data, list) or not all(isinstance(row, list) for row in data):
        raise BadRequest(f"{SPLIT}: data must be a list of rows")
    if names is None:
        return data
    if not isinstance(names, list) or len(set(map(str, names))) < len(names):
        raise BadRequest(f"{SPLIT}: columns must be a list of different names")
    return by_position(data, list(map(str, names)))


def records(rows: Any, what: str = "the input", names: Sequence[str] = ()) -> Table:
    """Rows that are objects, each with all of `names`, or with the columns of the first row."""
    if not isinstance(rows, list) or not rows or not isinstance(rows[0], dict):
        raise BadRequest(f"{what} must be a list of objects, one for each row")
    names = names or list(rows[0])
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise BadRequest(f"row {number} is not an object, as row 1 is")
        _same_columns(row, names, f"row {number}")
    return Table({name: [row[name] for row in rows] for name in names})


def by_column(value: Mapping[str, Any]) -> Table:
    """An object of columns: lists of one length, or single values for one row."""
    if value and not any(isinstance(each, list) for each in value.values()):
        return Table({name: [each] for name, each in value.items()})
    lengths = {name: len(each) if isinstance(each, list) else -1 for name, each in value.items()}
    if len(set(lengths.values())) != 1:
        shown = ", ".join(f"{name} {length if length >= 0 else 'is no list'}" for name, length in lengths.items())
        raise BadRequest(f"the columns are not lists of one length: {shown[:400]}")
    return Table(value)


def by_position(rows: Sequence[Any], names: Sequence[str]) -> Table:
    """Rows that are lists, in the order of `names`. Raises BadRequest for a row of another width."""
    for number, row in enumerate(rows, 1):
        if not isinstance(row, list):
            raise BadRequest(f"row {number} is not a list")
        if len(row) != len(names):
            raise BadRequest(f"row {number} has {len(row)} columns, not {len(names)}: {', '.join(names)[:400]}")
    return Table({name: [row[index] for row in rows] for index, name in enumerate(names)})


def from_csv(text: str, names: Sequence[str]) -> Table | None:
    """A CSV whose first row has column names, in any order; None if the first row has none of `names`.

    The type of a column is the one that `pandas.read_csv` finds, as when the model was trained on a file. Raises
    BadRequest.
    """
    first = text.removeprefix("\ufeff").lstrip("\r\n").partition("\n")[0]
    delimiter = next((each for each in _DELIMITERS if set(_cells(first, each)) & set(names)), None)
    if delimiter is None:
        return None
    header, *rows = csv_rows(text, delimiter)
    header = [cell.strip() for cell in header]
    if len(set(header)) < len(header):
        raise BadRequest(f"the header of the CSV names a column twice: {','.join(header)[:400]}")
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise BadRequest(f"row {number} of the CSV has {len(row)} cells, its header has {len(header)}")
    if not rows:
        raise BadRequest("there are no rows below the header of the CSV")
    return Table(_typed(rows, header)).ordered(names)


def positional_csv(text: str, names: Sequence[str]) -> Table:
    """A CSV without a header, in the order of `names`, whose cells may be text. Raises BadRequest."""
    rows = csv_rows(text)
    by_position(rows, names)
    if not rows:
        raise BadRequest("there are no rows")
    columns = _typed(rows, names)
    below = _typed(rows[1:], names) if len(rows) > 1 else columns
    for name, cell in zip(names, rows[0], strict=True):
        if below[name].dtype.kind in "iuf" and columns[name].dtype.kind not in "iuf":
            raise BadRequest(
                f"row 1 of the CSV has {cell[:60]!r} in a column of numbers",
                hint=f"if row 1 is a header, it must have the model's names: {', '.join(names)[:800]}",
            )
    return Table(columns)


def _typed(rows: Sequence[Sequence[str]], names: Sequence[str]) -> Mapping[str, Any]:
    """Columns of cells as the types that pandas reads from a file."""
    import pandas as pd  # not at the top: it is an extra, and its import starts a thread

    out = io.StringIO()
    csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_MINIMAL).writerows(rows)
    out.seek(0)
    columns = list(range(len(names)))  # a name can occur twice after pandas has cleaned it
    try:
        found = pd.read_csv(out, header=None, names=columns, index_col=False, skip_blank_lines=False, low_memory=False)
    except (ValueError, OverflowError) as error:  # ParserError is a ValueError
        raise BadRequest(f"the body is not CSV: {str(error)[:300]}") from error
    if len(found) != len(rows):
        raise BadRequest(f"the CSV has {len(rows)} rows, of which {len(found)} can be read")
    return {name: found[column] for column, name in zip(columns, names, strict=True)}


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return [cell.strip() for row in csv_rows(line, delimiter) for cell in row]
    except BadRequest:  # a quoted cell that continues on the next line
        return []


def _same_columns(found: Mapping[str, Any], names: Sequence[str], what: str) -> None:
    if found.keys() == set(names):
        return
    missing = [name for name in names if name not in found]
    wrong, which = ("lacks", missing) if missing else ("has unknown", sorted(found.keys() - set(names)))
    raise BadRequest(
        f"{what} {wrong} columns: {', '.join(which)[:400]}",
        hint=f"the model has {len(names)} features: {', '.join(names)[:800]}",
    )
