"""What a study can be made of: named search spaces, models, datasets."""

from __future__ import annotations

from fastapi import APIRouter

from search_spaces import NAMED_SPACES, NamedSpace
from service.answers import DatasetList, ModelList, SearchSpaceAnswer, SearchSpaceList
from service.api.problems import documented
from service.errors import SearchSpaceNotFoundError
from trainers.catalog import DATASETS, MODELS

router = APIRouter(tags=["what there is"])


@router.get("/search-spaces")
def list_search_spaces() -> SearchSpaceList:
    """Every named search space."""
    return SearchSpaceList(search_spaces=[_answer(named) for named in NAMED_SPACES.values()])


@router.get("/search-spaces/{name}", responses=documented(SearchSpaceNotFoundError))
def read_search_space(name: str) -> SearchSpaceAnswer:
    """One named search space."""
    if name not in NAMED_SPACES:
        names = ", ".join(NAMED_SPACES)
        raise SearchSpaceNotFoundError(f"no search space has the name {name!r}; the names are {names}")
    return _answer(NAMED_SPACES[name])


@router.get("/models")
def list_models() -> ModelList:
    """Every model."""
    return ModelList(models=list(MODELS.values()))


@router.get("/datasets")
def list_datasets() -> DatasetList:
    """Every dataset."""
    return DatasetList(datasets=list(DATASETS.values()))


def _answer(named: NamedSpace) -> SearchSpaceAnswer:
    return SearchSpaceAnswer(name=named.name, description=named.description, space=named.space, size=named.space.size())
