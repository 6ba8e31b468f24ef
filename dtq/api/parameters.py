"""Parameters: those of a query and of headers, as msgspec structs, and how they are parsed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from dtq.api.problems import HTTPProblem, of_decoding
from dtq.api.requests import NAME
from dtq.task.model import Status

T = TypeVar("T", bound=msgspec.Struct)
NameFilter = Annotated[str, Meta(pattern=f"^({NAME[1:-1]})?$", max_length=200)]


After = Annotated[str, Meta(max_length=200, description="Only tasks whose id comes after this one.")]
PageSize = Annotated[int, Meta(ge=1, le=1000, description="The largest number of tasks on a page.")]
Since = Annotated[float, Meta(ge=0, le=1e11, description="Only tasks that ended later; UTC seconds.")] | UnsetType


class Filters(msgspec.Struct, frozen=True):
    """Selects tasks."""

    def filters(self) -> dict[str, Any]:
        """Return the filters that the request has, without those of the page."""
        given: dict[str, Any] = msgspec.to_builtins(self)
        return {name: value for name, value in given.items() if name not in ("after", "limit") and value != ""}


class TaskQuery(Filters, frozen=True, kw_only=True):
    """Selects a page of tasks."""

    status: Status | UnsetType = UNSET
    queue: NameFilter = ""
    type: NameFilter = ""
    finished_after: Since = UNSET
    after: After = ""
    limit: PageSize = 100


class ErrorsQuery(Filters, frozen=True, kw_only=True):
    """Selects dead letters."""

    queue: NameFilter = ""
    type: NameFilter = ""
    error: Annotated[str, Meta(max_length=200, description="The type of the last error, for example Timeout.")] = ""
    since: Since = UNSET


class DeadQuery(ErrorsQuery, frozen=True, kw_only=True):
    """Selects a page of dead letters."""

    after: After = ""
    limit: PageSize = 100


class WaitQuery(msgspec.Struct, frozen=True):
    """How long to wait."""

    timeout: Annotated[float, Meta(ge=0, le=60, description="Seconds.")] = 30.0


_MEANING = "As in the limit; if left out, the limit for any."
_LimitName = Annotated[str, Meta(max_length=200, pattern=NAME, description=_MEANING)]


class LimitQuery(msgspec.Struct, frozen=True):
    """Names one limit."""

    queue: _LimitName | UnsetType = UNSET
    type: _LimitName | UnsetType = UNSET
    key: Annotated[str, Meta(max_length=200, pattern="^[ -~]*$", description=_MEANING)] | UnsetType = UNSET


_REPEATABLE = "A repeated key adds nothing; the response has the tasks that exist."
_IdempotencyKey = Annotated[str, Meta(min_length=1, max_length=200, pattern="^[!-~]+$", description=_REPEATABLE)]


class AddHeaders(msgspec.Struct, frozen=True):
    """The header of a request that can be repeated."""

    idempotency_key: _IdempotencyKey | UnsetType = msgspec.field(default=UNSET, name="Idempotency-Key")


# --- parsing ----------------------------------------------------------------------------------------------------------


def parse_query(given: Iterable[tuple[str, str]], shape: type[T]) -> T:
    """Return the parameters of a query as this struct. Raises HTTPProblem, which names the parameter, if one is
    unknown, repeated or not allowed."""
    values: dict[str, str] = {}
    for name, value in given:
        if name not in shape.__struct_fields__:
            allowed = ", ".join(sorted(shape.__struct_fields__))
            raise HTTPProblem.of_field(422, name[:200], f"unknown parameter; allowed: {allowed}")
        if name in values:
            raise HTTPProblem.of_field(422, name, "this parameter is given more than once")
        values[name] = value
    return _to_struct(values, shape)


def parse_headers(given: Mapping[str, str], shape: type[T]) -> T:
    """Return the headers of this struct. Raises HTTPProblem, which names the header, if one is not allowed."""
    names = shape.__struct_encode_fields__
    return _to_struct({name: given[name] for name in names if name in given}, shape)


def _to_struct(values: dict[str, str], shape: type[T]) -> T:
    try:
        return msgspec.convert(values, shape, strict=False)
    except msgspec.ValidationError as error:
        raise of_decoding(error) from None
