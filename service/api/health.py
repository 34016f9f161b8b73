"""Whether the service is well: probes for orchestrators and metrics for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from service.answers import Status
from service.api.problems import documented
from service.api.requests import Studies, TheDatabase
from service.errors import StoreUnavailableError

router = APIRouter(tags=["health"])


@router.get("/healthz")
def read_health() -> Status:
    """The process answers."""
    return Status()


@router.get("/readyz", responses=documented(StoreUnavailableError))
def read_readiness(database: TheDatabase) -> Status:
    """The store answers and its schema is the one this version needs."""
    database.check_schema()
    return Status()


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def read_metrics(request: Request, studies: Studies) -> Response:
    """Request latencies by route and status, and studies by state, for Prometheus."""
    return Response(request.app.state.metrics.exposition(studies), media_type=CONTENT_TYPE_LATEST)
