"""What `samstudy doctor` asks of the processes: the API, MLflow, Ray."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from json import JSONDecodeError
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.addresses import on_this_machine
from service.cli.findings import Finding, note, well, wrong
from service.errors import SamstudyError, ServiceUnavailableError, UnauthenticatedError
from service.settings import HOW_TO_ESCAPE, Settings, without_user

if TYPE_CHECKING:
    import httpx

    from service.addresses import Addresses
    from service.store.keys import KeyStore

TIMEOUT_S = 3.0

_UNAUTHORIZED = (401, 403)
_OTHER_WAYS_IN = ("MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4", "MLFLOW_TRACKING_CLIENT_CERT_PATH")
_GONE = 404


def api_url(current: Settings, running: Addresses | None) -> str:
    return current.url or (running.api_url if running else current.own_url)


def examine_api(current: Settings, running: Addresses | None, *, store_is_missing: bool) -> Finding:
    """Whether it is ready and lets us in. store_is_missing: so that what answers at the usual port is another's."""
    from service.client import Client

    url = api_url(current, running)
    try:
        with Client(url, timeout_s=TIMEOUT_S, patience_s=0) as client:
            client.check_ready()
            next(client.studies(page_size=1), None)
    except UnauthenticatedError as error:
        return wrong("API", error.detail, "set SAMSTUDY_API_KEY; samstudy keys create makes a key")
    except ServiceUnavailableError as error:
        return wrong("API", error.detail, "samstudy up starts it; SAMSTUDY_URL says where else it is")
    except SamstudyError as error:
        return wrong("API", f"{without_user(url)} answers: {error.detail}", "it runs: its log says more")
    if store_is_missing and not current.url and running is None:
        said = f"one is ready at {without_user(url)}; its store is another than this one, which is not there yet"
        return note("API", said, "samstudy up takes another port; SAMSTUDY_URL says that this is the one you mean")
    return well("API", f"ready at {without_user(url)}")


def examine_keys(current: Settings, keys: KeyStore) -> Finding:
    """Whether somebody can come in who should not, or nobody can."""
    from service.addresses import is_loopback

    if keys.any_valid():
        return well("keys", "every request needs one")
    if keys.any_made():
        create = "samstudy keys create --owner NAME --role admin makes one"
        return wrong("keys", "all are revoked, so that nobody gets in", create)
    if is_loopback(current.host):
        return well("keys", "there are none: the API is open to everybody on this machine, and only there")
    create = "samstudy keys create --owner NAME --role admin makes the first one"
    if current.allow_open_access:
        said = f"there are none, SAMSTUDY_HOST is {current.host} and SAMSTUDY_ALLOW_OPEN_ACCESS is true"
        return note("keys", said, f"see that something in front keeps others out, or {create}")
    return wrong("keys", f"there are none, so the API does not start on SAMSTUDY_HOST {current.host}", create)


def examine_mlflow(url: str, known_run: str | None) -> Finding:
    """Whether it answers, and is the one that has our runs. known_run: one that it must have; None: there is none."""
    import httpx

    remedy = "samstudy up starts it; SAMSTUDY_MLFLOW_URL says where else it is"
    try:
        access = _mlflow_access()
    except (OSError, ValueError) as error:
        bundle = _bundle()
        return wrong("MLflow", f"the certificates of {bundle} cannot be read ({error})", f"name others than {bundle}")
    try:
        trust_env = not on_this_machine(url)
        with httpx.Client(base_url=url.rstrip("/"), timeout=TIMEOUT_S, trust_env=trust_env, **access) as http:
            health = http.get("/health")
            listed = http.get("/api/2.0/mlflow/experiments/search", params={"max_results": 1})
            if {health.status_code, listed.status_code} & {*_UNAUTHORIZED}:  # its own accounts leave /health open
                return _not_let_in(url, listed)
            if health.status_code >= 400:
                return wrong("MLflow", f"{url} answers HTTP {health.status_code} to /health", "look into its log")
            version = http.get("/version")
            is_mlflow = version.status_code == 200 and version.text[:1].isdigit()
            said = f"answers at {url}" + (f", version {version.text.strip()[:40]}" if is_mlflow else "")
            if known_run is None:
                return well("MLflow", said)
            found = http.get("/api/2.0/mlflow/runs/get", params={"run_id": known_run})
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        return wrong("MLflow", f"nothing answers at {url} ({_why(url, error)})", remedy)
    if found.status_code == _GONE:
        remedy = "set SAMSTUDY_MLFLOW_URL to the server that has them; samstudy export ID --mlflow writes them anew"
        return wrong("MLflow", f"{said}, but it has not the runs of this store (such as {known_run})", remedy)
    if found.status_code >= 400:
        return note("MLflow", f"{said}; asked for a run it answers HTTP {found.status_code}", "look into its log")
    return well("MLflow", f"{said}, and has this store's runs")


def _not_let_in(url: str, answer: httpx.Response) -> Finding:
    said = f"{url} does not let us in (HTTP {answer.status_code})"
    if "host header" in answer.text[:1_000].lower():
        name = answer.request.url.netloc.decode()
        return wrong("MLflow", f"{said}: it does not know itself as {name}", f"start it with --allowed-hosts={name}")
    ways = [name for name in _OTHER_WAYS_IN if os.environ.get(name)]
    credentials = Path("~/.mlflow/credentials").expanduser()
    if ways or credentials.exists():
        by = ways[0] if ways else str(credentials)
        return note("MLflow", f"{said}; doctor cannot come in by {by}, as MLflow's client may", "see the export's lag")
    login = "set MLFLOW_TRACKING_USERNAME and _PASSWORD, or MLFLOW_TRACKING_TOKEN, for the controller too"
    return wrong("MLflow", said, login)


def _bundle() -> str | None:
    return os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or os.environ.get("REQUESTS_CA_BUNDLE")


def _mlflow_access() -> dict[str, Any]:
    """How MLflow's own client gets in, by the variables that it reads. Raises OSError, ValueError for certificates."""
    name, password = (os.environ.get(f"MLFLOW_TRACKING_{what}", "") for what in ("USERNAME", "PASSWORD"))
    token = os.environ.get("MLFLOW_TRACKING_TOKEN", "")
    access: dict[str, Any] = {}
    if name and password:
        access["auth"] = (name, password)
    elif token:
        access["headers"] = {"Authorization": f"Bearer {token}"}
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        access["verify"] = False
    elif bundle := _bundle():
        is_folder = Path(bundle).is_dir()
        access["verify"] = (
            ssl.create_default_context(capath=bundle) if is_folder else ssl.create_default_context(cafile=bundle)
        )
    return access


def examine_ray(current: Settings, running: Addresses | None) -> Iterator[Finding]:
    """Whether it answers, takes our token, and has nodes to train on."""
    import httpx

    url, token = running.ray_url if running else current.ray_jobs_url, current.ray_auth_token.get_secret_value()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        trust_env = not on_this_machine(url)
        with httpx.Client(base_url=url.rstrip("/"), timeout=TIMEOUT_S, trust_env=trust_env, headers=headers) as http:
            version = http.get("/api/version")
            nodes = http.get("/api/v0/nodes", params={"detail": "true", "limit": 10_000})
            answers: tuple[Any, Any] = (version.json(), nodes.json()) if nodes.is_success else ({}, {})
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        remedy = "samstudy up starts it; SAMSTUDY_RAY_JOBS_URL says where else it is"
        yield wrong("Ray", f"nothing answers at {url} ({_why(url, error)})", remedy)
        return
    if nodes.status_code in _UNAUTHORIZED and running:
        yield well("Ray", f"answers at {url}; samstudy up has made a token that only the service knows")
        return
    if nodes.status_code in _UNAUTHORIZED:
        lack = "does not take this RAY_AUTH_TOKEN" if token else "wants a token, and RAY_AUTH_TOKEN is not set"
        remedy = "set RAY_AUTH_TOKEN, for the controller too, to the one that its head was started with"
        yield wrong("Ray", f"{url} {lack} (HTTP {nodes.status_code})", remedy)
        return
    if not nodes.is_success:
        yield wrong("Ray", f"{url} answers HTTP {nodes.status_code}", "look into the log of Ray's head")
        return
    yield well("Ray", f"answers at {url}, version {answers[0].get('ray_version', '?')}")
    alive = _alive(answers[1])
    yield _nodes(alive)
    training = sum(1 for node in alive or () if node.get("CPU"))
    if training > 1 and current.storage_uri.startswith("file:"):
        said = f"{current.storage_uri} is a folder, and {training} nodes train: each must see the same one there"
        yield note("storage", said, "let every machine mount it, or set SAMSTUDY_STORAGE to one such as s3://…")


def _why(url: str, error: Exception) -> str:
    """What the error says; one about the address itself may quote a part of a password."""
    import httpx

    is_about_answers = isinstance(error, (httpx.HTTPError, JSONDecodeError))
    return str(error) if is_about_answers or without_user(url) == url else HOW_TO_ESCAPE


def _alive(answer: Any) -> list[dict[str, float]] | None:
    """What each living node has; None where Ray does not say so."""
    try:
        listed = answer["data"]["result"]["result"]
        return [node["resources_total"] for node in listed if node["state"] == "ALIVE"]
    except (KeyError, TypeError):
        return None


def _nodes(alive: list[dict[str, float]] | None) -> Finding:
    if alive is None:
        return note("nodes", "Ray does not say what it has")
    cpus, gpus = (sum(float(node.get(kind, 0)) for node in alive) for kind in ("CPU", "GPU"))
    with_gpu = sum(1 for node in alive if node.get("GPU"))
    if not cpus and not gpus:
        return wrong(
            "nodes", "the cluster has no node that could train", "start workers: ray start --address=HEAD:PORT"
        )
    said = f"{len(alive)} alive, {cpus:g} CPUs, "
    said += f"{gpus:g} GPUs on {with_gpu} of them" if gpus else "no GPU: studies that ask for one wait"
    return well("nodes", said)
