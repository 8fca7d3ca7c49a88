"""DataProcessing of a batch transform: fields of a record are selected, and predictions are joined with their input.

docs.aws.amazon.com/sagemaker/latest/dg/batch-transform-data-processing.html
"""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Self

from local_test.platform.calls import ValidationError

Step = tuple[str | int | slice, ...]  # the names, indexes or the slice of one selector
SELECTOR = re.compile(r"\.(?P<name>\w+)|\[(?P<inside>[^\[\]]+)\]")
INTEGER, NAME = re.compile(r"-?\d+"), re.compile(r"'([^']*)'|\"([^\"]*)\"")
SLICE = re.compile(r"(-?\d*):(-?\d*)")
CSV, JSON = ("text/csv", "csv"), ("application/json", "application/jsonlines", "application/x-jsonlines")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataProcessing:
    """The selectors of a request. `join`: each output record follows its input record."""

    before: tuple[Step, ...] = ()
    after: tuple[Step, ...] = ()
    join: bool = False
    tabular: bool = False  # records are rows of CSV, and not JSON

    @classmethod
    def read(cls, request: Mapping[str, Any]) -> Self | None:
        """From a CreateTransformJob request; None without DataProcessing. Raises ValidationError."""
        given = request.get("DataProcessing")
        if not given:
            return None
        source, target = request["TransformInput"], request["TransformOutput"]
        join = given.get("JoinSource", "None") == "Input"
        kinds = [source.get("ContentType", ""), *([target["Accept"]] if target.get("Accept") and join else [])]
        media = [kind.partition(";")[0].strip().lower() for kind in kinds]
        for known in (CSV, JSON):
            if all(kind in known for kind in media):
                return cls(
                    before=steps(given.get("InputFilter", "$"), "InputFilter"),
                    after=steps(given.get("OutputFilter", "$"), "OutputFilter"),
                    join=join,
                    tabular=known is CSV,
                )
        found = " and ".join(kinds)
        raise ValidationError(f"DataProcessing needs CSV or JSON as ContentType, and as Accept to join, not {found}.")

    def selected(self, record: bytes) -> bytes:
        """A record as the container gets it. It keeps the end of its line."""
        if not self.before:
            return record
        end = record[len(record.rstrip(b"\r\n")) :]
        return self._written(select(self._parsed(record), self.before)) + end

    def finished(self, inputs: Sequence[bytes], outputs: Sequence[bytes]) -> list[bytes]:
        """The output records, joined and selected. Raises ValidationError if there is not one for each input record."""
        if not self.join:
            return [self._written(select(self._parsed(each), self.after)) if self.after else each for each in outputs]
        if len(inputs) != len(outputs):
            raise ValidationError(f"JoinSource Input: {len(inputs)} input records got {len(outputs)} output records")
        return [
            self._written(select(self._joined(self._parsed(given), self._parsed(made)), self.after))
            for given, made in zip(inputs, outputs, strict=True)
        ]

    def _joined(self, given: Any, made: Any) -> Any:
        if self.tabular:
            return [*given, *made]
        if isinstance(given, dict):
            return {**given, "SageMakerOutput": made}
        return {"SageMakerInput": given, "SageMakerOutput": made}

    def _parsed(self, record: bytes) -> Any:
        try:
            text = record.decode().strip("\r\n")
            return next(csv.reader([text]), []) if self.tabular else json.loads(text)
        except ValueError as error:
            kind = "CSV" if self.tabular else "JSON"
            raise ValidationError(f"DataProcessing: a record is no {kind}: {error}") from None

    def _written(self, value: Any) -> bytes:
        if not self.tabular:
            return json.dumps(value).encode()
        out = io.StringIO()
        csv.writer(out, lineterminator="").writerow(value if isinstance(value, list) else [value])
        return out.getvalue().encode()


def steps(path: str, member: str) -> tuple[Step, ...]:
    """The selectors of a JSONPath: names, indexes and slices, as SageMaker has them. Raises ValidationError."""
    found = list(SELECTOR.finditer(path))
    if not path.startswith("$") or "".join(each[0] for each in found) != path[1:]:
        raise ValidationError(f"{member} {path!r} is not supported: use $ with .name, ['name'], [1], [0,2] or [1:].")
    return tuple((each["name"],) if each["name"] else _inside(each["inside"], f"{member} {path!r}") for each in found)


def _inside(text: str, where: str) -> Step:
    if sliced := SLICE.fullmatch(text.strip()):
        first, last = (int(each) if each else None for each in sliced.groups())
        return (slice(first, last),)
    items: list[str | int | slice] = []
    for part in map(str.strip, text.split(",")):
        if named := NAME.fullmatch(part):
            items.append(named[1] if named[1] is not None else named[2])
        elif INTEGER.fullmatch(part):
            items.append(int(part))
        else:
            raise ValidationError(f"{where} is not supported: [{text}] has no name, index or slice.")
    return tuple(items)


def select(value: Any, path: Sequence[Step]) -> Any:
    """The part of a value that a path selects. Raises ValidationError if the value does not have it."""
    return reduce(_one, path, value)


def _one(value: Any, step: Step) -> Any:
    try:
        if len(step) == 1:
            return value[step[0]]
        if isinstance(value, dict):
            return {each: value[each] for each in step}
        return [value[each] for each in step]
    except (KeyError, IndexError, TypeError):
        raise ValidationError(f"DataProcessing: a record has no {step[0] if len(step) == 1 else list(step)}") from None
