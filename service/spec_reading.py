"""From what a user wrote to plain data, and from pydantic's errors to problems in plain words."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Hashable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from search_spaces.checking import BROKEN_RULES, UNKNOWN_KEYS, shown
from service.errors import FieldProblem, InvalidSpecError

MAX_DEPTH = 12
MAX_VALUES = 20_000
MAX_KEYS = 200
"""Of one mapping. No section has so many, and a hint for each unknown one takes its time."""
MAX_TEXT = 10_000
MAX_FILE_BYTES = 512 * 1024
MAX_INT = 2**63

WHOLE_SPEC = "spec"
"""The field of a problem that concerns the spec as a whole."""

FieldPath = tuple[str | int, ...]


def field_name(path: FieldPath) -> str:
    """The path as users read it: `search_space.lambda.choices[2]`."""
    name = ""
    for part in path:
        if isinstance(part, int):
            name += f"[{part}]"
        else:
            name += f"{'.' if name else ''}{part[:64] or repr(part)}"
    return name or WHOLE_SPEC


def plain_data(raw: object) -> tuple[Any, list[FieldProblem]]:
    """A copy made of nothing but dict, list, str, int, finite float, bool and None, and what had to be left out.

    A value that is none of these is None in the copy. Raises InvalidSpecError for what is too large to be looked at.
    """
    reader = _PlainReader()
    return reader.read(raw, ()), reader.problems


class _PlainReader:
    def __init__(self) -> None:
        self.problems: list[FieldProblem] = []
        self.values = 0

    def read(self, value: object, path: FieldPath) -> Any:
        self.values += 1
        if self.values > MAX_VALUES:
            raise InvalidSpecError([FieldProblem(WHOLE_SPEC, f"a spec has at most {MAX_VALUES:,} values")])
        if len(path) > MAX_DEPTH:
            message = f"is nested too deeply: a spec has at most {MAX_DEPTH} levels"
            raise InvalidSpecError([FieldProblem(field_name(path), message)])
        if isinstance(value, Mapping):
            return self._mapping(value, path)
        if isinstance(value, (list, tuple)):
            return [self.read(item, (*path, index)) for index, item in enumerate(value)]
        problem = _scalar_problem(value)
        if problem:
            self.problems.append(FieldProblem(field_name(path), problem))
            return None
        return value

    def _mapping(self, value: Mapping[object, object], path: FieldPath) -> dict[str, Any]:
        if len(value) > MAX_KEYS:
            message = f"has at most {MAX_KEYS} keys, got {len(value):,}"
            raise InvalidSpecError([FieldProblem(field_name(path), message)])
        copy = {}
        for key, item in value.items():
            problem = _key_problem(key)
            if problem:
                self.problems.append(FieldProblem(field_name(path), f"a key {problem}"))
            else:
                copy[str(key)] = self.read(item, (*path, str(key)))
        return copy


def _key_problem(key: object) -> str | None:
    if isinstance(key, str):
        return _scalar_problem(key)
    large = isinstance(key, int) and abs(key) > MAX_INT
    return "must be text, got a number" if large else f"must be text, got {shown(key)}; put it in quotes"


def _scalar_problem(value: object) -> str | None:
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            return f"must be at most {MAX_TEXT:,} characters long, got {len(value):,}"
        if "\x00" in value or any("\ud800" <= character <= "\udfff" for character in value):
            return "must not contain NUL or half of a surrogate pair"
    elif isinstance(value, float):
        if not math.isfinite(value):
            return f"must be a finite number, got {value}"
    elif isinstance(value, int):
        if abs(value) > MAX_INT:
            return "must lie within ±2^63, and is far beyond"
    elif value is not None:
        return f"must be text, a number, true, false or null, got a {type(value).__name__}"
    return None


def problems_of(error: ValidationError, raw: object, prefix: FieldPath = ()) -> list[FieldProblem]:
    """The problems that pydantic found in `raw`, by the paths that its author knows. prefix: the path of `raw`."""
    problems = []
    for detail in error.errors(include_url=False):
        path = (*prefix, *_written_path(detail, raw))
        ctx = detail.get("ctx", {})
        if detail["type"] == "too_short" and len(detail["input"]) >= ctx["min_length"]:
            continue  # pydantic counts the sound entries only; the others have problems of their own
        if detail["type"] in (BROKEN_RULES, UNKNOWN_KEYS):
            problems += [
                FieldProblem(field_name((*path, *problem.path)), problem.message) for problem in ctx["problems"]
            ]
        elif detail["type"].startswith("union_tag"):
            field = field_name((*path, str(ctx["discriminator"]).strip("'")))
            problems.append(FieldProblem(field, _message(detail)))
        else:
            problems.append(FieldProblem(field_name(path), _message(detail)))
    return problems


def without_unknown_keys(error: ValidationError, raw: object) -> Any:
    """A copy of `raw` without the keys that the error calls unknown, to see what else is wrong."""
    pruned: Any = deepcopy(raw)
    for detail in error.errors(include_url=False):
        if detail["type"] == UNKNOWN_KEYS:
            place = pruned
            for part in _written_path(detail, raw):
                place = place[part]
            for problem in detail["ctx"]["problems"]:
                place.pop(problem.path[0], None)
    return pruned


def _written_path(detail: ErrorDetails, raw: object) -> FieldPath:
    """The path without the names of union members, which pydantic puts in and nobody wrote."""
    path: list[str | int] = []
    place: Any = raw
    last = len(detail["loc"]) - 1
    for index, part in enumerate(detail["loc"]):
        in_mapping = isinstance(place, dict) and part in place
        in_list = isinstance(place, list) and isinstance(part, int) and part < len(place)
        if in_mapping or in_list:
            place = place[part]
            path.append(part)
        elif detail["type"] == "missing" and index == last:
            path.append(part)
    return tuple(path)


_LIMITS = {
    "greater_than": ("gt", "must be above"),
    "greater_than_equal": ("ge", "must be at least"),
    "less_than": ("lt", "must be below"),
    "less_than_equal": ("le", "must be at most"),
}
_KINDS = {
    "string_type": "must be text",
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "none_required": "must be null",
    "dict_type": "must be a mapping of names to values",
    "model_type": "must be a mapping of names to values",
    "model_attributes_type": "must be a mapping of names to values",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
}


def _message(detail: ErrorDetails) -> str:
    kind, given, ctx = detail["type"], shown(detail["input"]), detail.get("ctx", {})
    if kind in _KINDS:
        return f"{_KINDS[kind]}, got {given}"
    if kind in _LIMITS:
        limit, words = _LIMITS[kind]
        bound = ctx[limit]
        return f"{words} {f'{bound:,}' if isinstance(bound, int) else f'{bound:,g}'}, got {given}"
    match kind:
        case "missing":
            return "is required"
        case "literal_error":
            return f"must be one of {str(ctx['expected']).replace(' or ', ', ')}, got {given}"
        case "union_tag_invalid":
            return f"must be one of {ctx['expected_tags']}, got {shown(ctx['tag'])}"
        case "union_tag_not_found":
            return "is required"
        case "too_short" | "string_too_short":
            return "must not be empty" if ctx["min_length"] == 1 else f"must have {ctx['min_length']} or more"
        case "too_long":
            return f"must have at most {ctx['max_length']:,} entries, got {len(detail['input']):,}"
        case "string_too_long":
            return f"must be at most {ctx['max_length']:,} characters long, got {len(detail['input']):,}"
        case "string_pattern_mismatch":
            return f"must match {ctx['pattern']}, got {given}"
    return detail["msg"]


def read_spec_file(path: Path) -> object:
    """What a YAML or JSON file says, as plain data. Raises OSError, and InvalidSpecError with line numbers."""
    with path.open("rb") as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise InvalidSpecError([FieldProblem(WHOLE_SPEC, f"the file is larger than {MAX_FILE_BYTES:,} bytes")])
    try:
        text = content.decode("utf-8-sig")
        if path.suffix == ".json":
            return json.loads(text, object_pairs_hook=unique_pairs)
        return yaml.load(text, Loader=_SpecLoader)  # noqa: S506 (derives from SafeLoader)
    except UnicodeDecodeError as error:
        problem = FieldProblem(WHOLE_SPEC, f"the file must be UTF-8, and byte {error.start:,} is not")
    except json.JSONDecodeError as error:
        problem = FieldProblem(f"line {error.lineno}, column {error.colno}", error.msg)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}" if mark else WHOLE_SPEC
        problem = FieldProblem(place, error.problem or error.context or "is no YAML")
    except yaml.YAMLError as error:
        problem = FieldProblem(WHOLE_SPEC, f"the file is no YAML: {error}")
    except RecursionError:
        problem = FieldProblem(WHOLE_SPEC, f"is nested too deeply: a spec has at most {MAX_DEPTH} levels")
    except ValueError as error:
        problem = FieldProblem(WHOLE_SPEC, str(error))
    raise InvalidSpecError([problem])


def unique_pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """The mapping of these pairs, which are of one JSON object. Raises ValueError where a key is there twice."""
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"the key {shown(twice)} is there twice")
    return mapping


_TAGS = (None, "!", *(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null")))


class _SpecLoader(yaml.SafeLoader):
    """YAML with the scalars of YAML 1.2: 1e-3 is a number; `no` and 2026-01-31 are text. No aliases, no key twice."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (as in PyYAML)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases are not supported", problem_mark=event.start_mark)
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) not in _TAGS:
            message = f"tags such as {shown(event.tag)} are not supported"
            raise yaml.MarkedYAMLError(problem=message, problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be text", problem_mark=key_node.start_mark)
            if key_node.value in seen:
                message = f"the key {shown(key_node.value)} is there twice"
                raise yaml.MarkedYAMLError(problem=message, problem_mark=key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)

    def construct_word(self, node: yaml.ScalarNode) -> bool:
        text = str(self.construct_scalar(node)).lower()
        if text not in ("true", "false"):
            raise yaml.MarkedYAMLError(problem=f"{shown(text)} is neither true nor false", problem_mark=node.start_mark)
        return text == "true"

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        text = str(self.construct_scalar(node)).replace(".inf", "inf").replace(".nan", "nan").lower()
        try:
            return int(text) if node.tag.endswith(":int") else float(text)
        except ValueError:
            message = f"{shown(node.value)} is no number"
            raise yaml.MarkedYAMLError(problem=message, problem_mark=node.start_mark) from None


_INTEGER = re.compile(r"[-+]?[0-9]+\Z")
_FLOAT = re.compile(
    r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
)
_SpecLoader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(?:~|null|Null|NULL|)\Z"), [*"~nN", ""])
_SpecLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), list("tTfF")
)
_SpecLoader.add_implicit_resolver("tag:yaml.org,2002:int", _INTEGER, list("-+0123456789"))
_SpecLoader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_SpecLoader.add_constructor("tag:yaml.org,2002:bool", _SpecLoader.construct_word)
_SpecLoader.add_constructor("tag:yaml.org,2002:int", _SpecLoader.construct_number)
_SpecLoader.add_constructor("tag:yaml.org,2002:float", _SpecLoader.construct_number)
