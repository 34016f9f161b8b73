"""Whether the service is well: probes for orchestrators and metrics for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from service.answers import Status
from service.api.problems import documented
from service.errors import StoreUnavailableError

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def read_health() -> Status:
    """The process answers, whatever its threads wait for."""
    return Status()


@router.get("/readyz", responses=documented(StoreUnavailableError))
async def read_readiness(request: Request) -> Status:
    """The store answers within 3 s, its schema is the one this version needs, and it takes what is written.

    Found out once a second at most, by one thread, however many ask.
    """
    await request.app.state.readiness.check()
    return Status()


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def read_metrics(request: Request) -> Response:
    """Latencies of requests, and of all owners what waits, for how long, and whose lease runs out; for Prometheus.

    Open on loopback; elsewhere it needs a key, of any role.
    """
    return Response(request.app.state.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)
