"""Who can reach the service from outside of this machine, and Ray without its token: nobody."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv6Address, ip_address

import httpx
import psutil
import pytest

from service.client import Client
from tests.e2e.conftest import Service, wait_until
from tests.e2e.test_the_whole_way import spec_for


@pytest.fixture
def training(service: Service, client: Client) -> Iterator[None]:
    """A study that trains, so that its driver and its workers listen too."""
    study = client.submit(spec_for("listening", epochs=10_000))
    wait_until(lambda: bool(service.drivers(study.id) and service.workers()), what="a driver and a worker")
    yield
    client.cancel(study.id)
    wait_until(lambda: client.study(study.id).state.is_final, what="the study has ended")


def listening(service: Service) -> dict[str, set[str]]:
    """The addresses that the service's processes listen on, by command."""
    found: dict[str, set[str]] = {}
    for process in service.processes():
        with suppress(psutil.NoSuchProcess):
            for socket in process.net_connections("inet"):
                if socket.status == psutil.CONN_LISTEN:
                    found.setdefault(" ".join(process.cmdline()), set()).add(f"{socket.laddr.ip} {socket.laddr.port}")
    return found


def is_loopback(address: str) -> bool:
    """Also where a socket for both versions of IP is bound to an address of version 4, as those of gRPC are."""
    found = ip_address(address)
    return ((found.ipv4_mapped if isinstance(found, IPv6Address) else None) or found).is_loopback


def ray_token(service: Service) -> str:
    """What `samstudy up` has made for its processes."""
    (controller,) = service.processes("service.cli", "controller")
    token: str = controller.environ()["RAY_AUTH_TOKEN"]
    return token


@pytest.mark.usefixtures("training")
def test_every_process_listens_on_loopback_alone(service: Service) -> None:
    found = listening(service)
    commands = "\n".join(found)
    for part in ("service.cli api", "mlflow", "gcs_server", "raylet", "dashboard", "ray::"):
        assert part in commands, f"{part} listens nowhere: this test does not see everything"
    ports = {address.split()[1] for addresses in found.values() for address in addresses}
    for url in (service.addresses.api_url, service.addresses.mlflow_url, service.addresses.ray_url):
        assert str(httpx.URL(url).port) in ports
    outside = {
        command: addresses
        for command, addresses in found.items()
        if not all(is_loopback(address.split()[0]) for address in addresses)
    }
    assert outside == {}, outside


@pytest.mark.parametrize("path", ["/api/jobs/", "/api/version", "/api/v0/nodes", "/nodes?view=summary"])
def test_ray_answers_to_its_token_alone(service: Service, path: str) -> None:
    with httpx.Client(base_url=service.addresses.ray_url, timeout=60, trust_env=False) as http:
        for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": f"Bearer {ray_token(service)[:-1]}"}):
            assert http.get(path, headers=headers).status_code in (401, 403)
        assert http.get(path, headers={"Authorization": f"Bearer {ray_token(service)}"}).status_code == 200


def test_ray_takes_no_job_without_its_token(service: Service) -> None:
    job = {"entrypoint": "true", "submission_id": "uninvited", "entrypoint_num_cpus": 0}
    with httpx.Client(base_url=service.addresses.ray_url, timeout=60, trust_env=False) as http:
        assert http.post("/api/jobs/", json=job).status_code in (401, 403)
        known = http.get("/api/jobs/", headers={"Authorization": f"Bearer {ray_token(service)}"}).json()
    assert "uninvited" not in [one["submission_id"] for one in known]
