"""StudySpec: what a user posts. `parse_spec` answers with a sound spec or with everything that is wrong at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Self, get_type_hints

from pydantic import AfterValidator, Field, StrictBool, TypeAdapter, ValidationError, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError, from_json, to_json

from search_spaces import NAMED_SPACES, Scalar, SearchSpace, structure_problems
from search_spaces.checking import (
    RuleProblem,
    StrictModel,
    near_miss,
    rules_error,
    shown,
    unknown_key_problem,
)
from search_spaces.parameters import Parameter, ScalarField
from service.errors import FieldProblem, InvalidSpecError
from service.spec_checks import Parts, spec_problems
from service.spec_reading import (
    WHOLE_SPEC,
    field_name,
    plain_data,
    problems_of,
    read_spec_file,
    without_unknown_keys,
)
from service.spec_sections import (
    ACCEPTED,
    Algorithm,
    AshaScheduler,
    Budget,
    Checkpoint,
    Confirm,
    Description,
    Failure,
    Labels,
    Name,
    NoScheduler,
    Objective,
    Replicates,
    Resources,
    Scheduler,
)
from trainers.config import TrainConfig

__all__ = [
    "Algorithm",
    "AshaScheduler",
    "Budget",
    "Checkpoint",
    "Confirm",
    "Failure",
    "NoScheduler",
    "Objective",
    "Plan",
    "Replicates",
    "Resources",
    "StudySpec",
    "accepted_spec",
    "load_spec",
    "parse_spec",
    "plan",
]


def _checked_space_name(name: str) -> str:
    if name not in NAMED_SPACES:
        hint = near_miss(name, NAMED_SPACES)
        text = f"no search space has the name {shown(name)}{hint}; the names are {', '.join(NAMED_SPACES)}"
        raise PydanticCustomError("rule", "{text}", {"text": text})
    return name


SpaceName = Annotated[str, AfterValidator(_checked_space_name)]


class StudySpec(StrictModel):
    """One study: a search space, what is better, how configurations are chosen, and a budget.

    Trials, not configurations, are what budgets count: a configuration is trained once for every seed.
    """

    name: Name = Field(
        description="names the study and its MLflow experiment: printable, no slashes",
        examples=["lambda-rho-digits"],
    )
    description: Description = Field("", description="for people")
    labels: Labels = Field(default_factory=dict, description="for finding studies again", examples=[{"team": "vision"}])
    train: dict[str, ScalarField] = Field(
        default_factory=dict,
        description="fixed fields of the training configuration; those absent here and in the space have defaults",
        examples=[{"dataset": "digits", "model": "mlp", "epochs": 20, "batch_size": 64, "lr": 0.1}],
    )
    search_space: SpaceName | SearchSpace = Field(
        description="the name of a search space, or its parameters by the field of the training configuration",
        examples=["paper_lambda_rho", {"rho": {"type": "float", "low": 0.01, "high": 0.5, "log": True}}],
    )
    objective: Objective
    algorithm: Algorithm = Algorithm()
    scheduler: Scheduler = NoScheduler()
    replicates: Replicates = Replicates()
    confirm: Confirm | None = Field(None, description="runs the best again on fresh seeds; null: it does not")
    budget: Budget = Budget()
    resources_per_trial: Resources = Resources()
    failure: Failure = Failure()
    checkpoint: Checkpoint = Checkpoint()
    allow_test_objective: StrictBool = Field(
        False, description="needed to optimise a test metric: the search then sees the test split"
    )

    @property
    def space(self) -> SearchSpace:
        """The search space, looked up where the spec names it."""
        if isinstance(self.search_space, str):
            return NAMED_SPACES[self.search_space].space
        return self.search_space

    def configuration_budget(self) -> int | None:
        """How many configurations max_trials allows; None without a limit."""
        if self.budget.max_trials is None:
            return None
        return self.budget.max_trials // len(self.replicates.seeds)

    def train_config(self, point: Mapping[str, Scalar], seed: int) -> TrainConfig:
        """The training configuration of the trial of this configuration and seed."""
        return TrainConfig.from_mapping({**self.train, **point, "seed": seed})

    def to_mapping(self) -> dict[str, Any]:
        """The spec as JSON data, defaults included; `accepted_spec` reads it back."""
        return self.model_dump(mode="json")

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> Self:
        parts = _parts({name: getattr(self, name) for name in StudySpec.model_fields})
        problems = spec_problems(parts, is_new=info.context != ACCEPTED)
        if problems:
            raise rules_error([RuleProblem((problem.field,), problem.message) for problem in problems])
        return self


@dataclass(frozen=True, slots=True)
class Plan:
    """How much a study will run at most: its configurations, and its trials over all seeds.

    confirming_trials: how many of the trials run the best configurations again on fresh seeds.
    """

    configurations: int
    trials: int
    confirming_trials: int = 0


def plan(spec: StudySpec) -> Plan:
    """What the study runs if nothing ends it early: the budget, or the whole space where that is smaller."""
    bounds = [bound for bound in (spec.configuration_budget(), spec.space.size()) if bound is not None]
    configurations = min(bounds)
    confirming = min(spec.confirm.top_k, configurations) * len(spec.confirm.seeds) if spec.confirm else 0
    return Plan(configurations, configurations * len(spec.replicates.seeds) + confirming, confirming)


def stored_objective(stored: Mapping[str, Any]) -> Objective:
    """What a study optimises, from its stored spec, whichever version has stored it."""
    return Objective.model_validate(stored["objective"])


def stored_space(stored: Mapping[str, Any]) -> SearchSpace:
    """The space that a study searches, from its stored spec, whatever else of that this machine does not know.

    Raises InvalidSpecError for one of a version with other rules.
    """
    space = stored["search_space"]
    try:
        return NAMED_SPACES[space].space if isinstance(space, str) else SearchSpace.model_validate(space)
    except (KeyError, ValidationError) as error:
        message = f"this version has other rules: {error}"
        raise InvalidSpecError([FieldProblem("search_space", message)]) from error


def stored_plan(stored: Mapping[str, Any]) -> Plan | None:
    """The plan of a study from its stored spec; None for one of a version with other rules."""
    sections = {name: section for name, section in stored.items() if name not in _TEXTS}
    return _plan_of(to_json(sections, inf_nan_mode="constants"))


@lru_cache(maxsize=1024)  # the check of a spec takes longer than all else that is asked of a study
def _plan_of(sections: bytes) -> Plan | None:
    """sections: of a stored spec, as JSON, without the texts, in which studies of the same plan differ."""
    try:
        return plan(accepted_spec({**from_json(sections), "name": "any"}))
    except InvalidSpecError:
        return None


def parse_spec(raw: object) -> StudySpec:
    """The spec in a request's body. Raises InvalidSpecError with every problem in it."""
    plain, problems = plain_data(raw)
    if not isinstance(plain, dict):
        got = "nothing" if plain is None else shown(plain)
        message = f"a spec must be a mapping of names to values, got {got}"
        raise InvalidSpecError([FieldProblem(WHOLE_SPEC, message)])
    if not problems:
        try:
            return StudySpec.model_validate(plain)
        except ValidationError as error:
            fallback = problems_of(error, plain)
    reported = {problem.field for problem in problems}
    problems += [problem for problem in _every_problem(plain, is_new=True) if problem.field not in reported]
    raise InvalidSpecError(problems or fallback)


def accepted_spec(stored: object) -> StudySpec:
    """The spec of a study that there is, as `StudySpec.to_mapping` wrote it, perhaps with another budget.

    A version that had other rules may have accepted it, so those for names, labels and descriptions do not apply again,
    nor those for what can be run all the same.
    Raises InvalidSpecError where this version cannot run it.
    """
    plain, problems = plain_data(stored)
    if not problems:
        try:
            return StudySpec.model_validate(plain, context=ACCEPTED)
        except ValidationError as error:
            problems = problems_of(error, plain)
            reported = {problem.field for problem in problems}
            others = _every_problem(plain, is_new=False)
            known = {*_TEXTS, *reported}
            problems += [problem for problem in others if not known & {problem.field, problem.field.split(".")[0]}]
    raise InvalidSpecError(problems)


def load_spec(path: str | Path) -> StudySpec:
    """The spec in a YAML file, or in a JSON file named .json. Raises InvalidSpecError, and OSError for no such file."""
    return parse_spec(read_spec_file(Path(path)))


def _every_problem(plain: dict[str, Any], *, is_new: bool) -> list[FieldProblem]:
    """The problems of each section by itself, and of the sound sections together."""
    fields = StudySpec.model_fields
    unknown = [unknown_key_problem(key, list(fields)) for key in plain if key not in fields]
    problems = [FieldProblem(field_name(problem.path), problem.message) for problem in unknown]
    sections: dict[str, Any] = {}
    for name, field in fields.items():
        if name in plain:
            reader = _READERS.get(name, _read_section)
            sections[name], found = reader(name, plain[name])
            problems += found
        elif field.is_required():
            problems.append(FieldProblem(name, "is required"))
        else:
            sections[name] = field.get_default(call_default_factory=True)
    return list(dict.fromkeys([*problems, *spec_problems(_parts(sections), is_new=is_new)]))


def _parts(sections: Mapping[str, Any]) -> Parts:
    """The sections for the checks between them; those that are absent or None are not sound."""
    space = sections.get("search_space")
    named = NAMED_SPACES.get(space) if isinstance(space, str) else None
    if named:
        space = named.space
    return Parts(
        parameters=space.parameters if isinstance(space, SearchSpace) else space,
        space=space if isinstance(space, SearchSpace) else None,
        space_is_named=named is not None,
        **{name: sections.get(name) for name in _CHECKED_TOGETHER},
    )


_TEXTS = ("name", "description", "labels")
_CHECKED_TOGETHER = (
    "train",
    "objective",
    "algorithm",
    "scheduler",
    "replicates",
    "confirm",
    "budget",
    "resources_per_trial",
    "allow_test_objective",
)
_PARAMETER: TypeAdapter[Parameter] = TypeAdapter(Parameter)
_SCALAR: TypeAdapter[Scalar] = TypeAdapter(ScalarField)
_SECTIONS: dict[str, TypeAdapter[Any]] = {
    name: TypeAdapter(hint)
    for name, hint in get_type_hints(StudySpec, include_extras=True).items()
    if name in StudySpec.model_fields
}


def _read(adapter: TypeAdapter[Any], raw: object, path: tuple[str, ...]) -> tuple[Any, list[FieldProblem]]:
    """The value, None where it is not sound, and its problems. Unknown keys alone hide nothing else."""
    try:
        return adapter.validate_python(raw), []
    except ValidationError as error:
        problems = problems_of(error, raw, path)
        known = without_unknown_keys(error, raw)
    if known == raw:
        return None, problems
    value, more = _read(adapter, known, path)
    return value, [*problems, *more]


def _read_section(name: str, raw: object) -> tuple[Any, list[FieldProblem]]:
    return _read(_SECTIONS[name], raw, (name,))


def _read_train(name: str, raw: object) -> tuple[dict[str, Any] | None, list[FieldProblem]]:
    """The fixed fields; those that are not sound are None."""
    if not isinstance(raw, dict):
        return _read_section(name, raw)
    read = {key: _read(_SCALAR, value, (name, key)) for key, value in raw.items()}
    return {key: value for key, (value, _) in read.items()}, [p for _, found in read.values() for p in found]


def _read_space(
    name: str, raw: object
) -> tuple[SearchSpace | str | dict[str, Parameter | None] | None, list[FieldProblem]]:
    """The space, or its name, or, where a parameter is not sound, the parameters with None for such ones."""
    if isinstance(raw, str):
        value, problems = _read(_SPACE_NAME, raw, (name,))
        return value, problems
    if not isinstance(raw, dict) or not raw:
        message = "must be the name of a search space or a mapping of at least one parameter"
        return None, [FieldProblem(name, f"{message}, got {shown(raw)}")]
    read = {key: _read(_PARAMETER, value, (name, key)) for key, value in raw.items()}
    problems = [problem for _, found in read.values() for problem in found]
    sound = {key: value for key, (value, _) in read.items() if value is not None}
    broken = [key for key in read if key not in sound]
    structure = structure_problems(sound, unreadable=broken)
    problems += [FieldProblem(field_name((name, *problem.path)), problem.message) for problem in structure]
    if broken or structure:
        return {key: value for key, (value, _) in read.items()}, problems
    return SearchSpace(sound), problems


_READERS: dict[str, Callable[[str, object], tuple[Any, list[FieldProblem]]]] = {
    "train": _read_train,
    "search_space": _read_space,
}
_SPACE_NAME: TypeAdapter[str] = TypeAdapter(SpaceName)
