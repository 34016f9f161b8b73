"""`samstudy doctor`: what it finds, whatever is down, and what it says to do."""

from __future__ import annotations

import http.server
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import insert, update

from service.access import NewKey, Role
from service.cli import examining_machine, examining_services, examining_store, main
from service.cli.doctor import examine, shown_settings
from service.cli.findings import Finding, Verdict, lines, note, well, wrong
from service.settings import Settings, settings
from service.store import tables
from service.store.database import Database
from service.store.exporting import ExportStore
from service.store.keys import KeyStore
from service.store.reconciling import ReconcilingStore
from service.store.reports import EpochReported
from service.store.watching import WatchingStore
from tests.service.proxy import proxy_of_the_environment
from tests.small_disk import small_disk
from trainers.facts import ModelFacts

if TYPE_CHECKING:
    from tests.service.conftest import Life, RunningApi


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An environment without a service."""
    for name in [name for name in os.environ if name.startswith(("SAMSTUDY_", "RAY_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SAMSTUDY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(examining_machine, "_torchvision", lambda: well("torchvision", "can be used"))
    settings.cache_clear()
    yield tmp_path
    settings.cache_clear()


class Answering:
    """An HTTP server that answers each path with a status and a body, 404 where it has none."""

    def __init__(self, answers: Mapping[str, tuple[int, Any]], token: str = "") -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                is_open = self.path == "/health"  # with MLflow's own accounts too
                refused = token and not is_open and self.headers["Authorization"] != f"Bearer {token}"
                status, body = (401, "") if refused else answers.get(self.path.partition("?")[0], (404, ""))
                self.send_response(status)
                self.end_headers()
                self.wfile.write((body if isinstance(body, str) else json.dumps(body)).encode())

            def log_message(self, *arguments: Any) -> None:
                """Quiet."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def answering() -> Iterator[Callable[..., str]]:
    """Starts such a server, and answers its URL."""
    started: list[tuple[Answering, threading.Thread]] = []

    def start(answers: Mapping[str, tuple[int, Any]], token: str = "") -> str:
        server = Answering(answers, token)
        thread = threading.Thread(target=server.server.serve_forever, args=(0.01,))
        thread.start()
        started.append((server, thread))
        return server.url

    yield start
    for server, thread in started:
        server.server.shutdown()
        server.server.server_close()
        thread.join(10)


def ray_nodes(*nodes: dict[str, float]) -> dict[str, tuple[int, Any]]:
    listed = [{"state": "ALIVE", "resources_total": node} for node in nodes]
    listed.append({"state": "DEAD", "resources_total": {"CPU": 64, "GPU": 8}})
    answer = {"data": {"result": {"result": listed}}}
    return {"/api/version": (200, {"ray_version": "2.60.0"}), "/api/v0/nodes": (200, answer)}


def a_mlflow(*runs: str) -> dict[str, tuple[int, Any]]:
    answers: dict[str, tuple[int, Any]] = {"/health": (200, "OK"), "/version": (200, "3.17.2")}
    return answers | ({"/api/2.0/mlflow/runs/get": (200, {})} if runs else {})


def by_name(findings: Iterator[Finding] | list[Finding]) -> dict[str, Finding]:
    return {finding.what: finding for finding in findings}


class TestTheCommand:
    def test_a_service_that_runs_well_is_said_so(
        self,
        environment: Path,
        running_api: RunningApi,
        life: Life,
        database: Database,
        answering: Callable[..., str],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        study = life.create()
        ExportStore(database).set_study_run(study.id, experiment_id="1", run_id="our-run")
        ReconcilingStore(database).lead("controller", "a-machine:1", 60)
        monkeypatch.setenv("SAMSTUDY_URL", running_api.url)
        monkeypatch.setenv("SAMSTUDY_MLFLOW_URL", answering(a_mlflow("our-run")))
        monkeypatch.setenv("SAMSTUDY_RAY_JOBS_URL", answering(ray_nodes({"CPU": 8}, {"CPU": 8, "GPU": 2})))
        settings.cache_clear()
        assert main(["doctor"]) == 0
        out = capsys.readouterr().out
        assert "nothing is wrong" in out
        said = {line[2:17].strip(): line[17:] for line in out.splitlines() if line[:1] in "✓!✗" and line}
        assert said["API"] == f"ready at {running_api.url}"
        assert said["MLflow"].endswith("version 3.17.2, and has this store's runs")
        assert said["nodes"] == "2 alive, 16 CPUs, 2 GPUs on 1 of them"
        assert said["controller"] == "a-machine:1 leads"
        assert said["keys"].startswith("there are none: the API is open to everybody on this machine")
        assert said["queue"] == f"{study.id} (lambda-rho-digits) waits: no controller has looked at it yet"

    def test_an_api_of_another_home_is_not_taken_for_ours(
        self,
        environment: Path,
        running_api: RunningApi,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setenv("SAMSTUDY_HOME", str(environment / "another home"))
        monkeypatch.setenv("SAMSTUDY_PORT", running_api.url.rpartition(":")[2])
        settings.cache_clear()
        assert main(["doctor"]) == 1
        (said,) = [line for line in capsys.readouterr().out.splitlines() if line[2:].startswith("API ")]
        assert said.startswith("!")
        assert f"ready at {running_api.url}; its store is another" in said

    def test_an_api_that_refuses_is_not_said_to_be_down(self, running_api: RunningApi, database: Database) -> None:
        with database.writing() as connection:
            connection.exec_driver_sql("ALTER TABLE alembic_version RENAME TO gone")
        finding = examining_services.examine_api(Settings(url=running_api.url), None, store_is_missing=False)
        said = " ".join(lines(finding, width=200))
        assert f"{running_api.url} answers: the store's schema is at revision None" in said
        assert "its log says more" in said
        assert "samstudy up" not in said

    def test_everything_that_is_down_comes_with_a_remedy(
        self, environment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for name in ("SAMSTUDY_URL", "SAMSTUDY_MLFLOW_URL", "SAMSTUDY_RAY_JOBS_URL"):
            monkeypatch.setenv(name, "http://127.0.0.1:1")
        settings.cache_clear()
        assert main(["doctor"]) == 1
        out = capsys.readouterr().out.splitlines()
        for index, line in enumerate(out):
            if line.startswith("✗"):
                assert out[index + 1].strip().startswith("→")
        assert {line[2:16].strip() for line in out if line.startswith("✗")} == {"store", "API", "MLflow", "Ray"}
        assert "4 things are wrong" in out
        assert "  url = http://127.0.0.1:1" in out
        assert not any(line.startswith("  lease_s") for line in out)
        assert not (environment / "home" / "samstudy.db").exists()

    def test_a_misspelt_variable_is_noted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SAMSTUDY_DATABASE", "postgresql://h/db")
        monkeypatch.setenv("SAMSTUDY_DATA_DIR", "/data")
        (finding,) = [finding for finding in examine(Settings()) if finding.what == "settings"]
        assert (finding.verdict, finding.said) == (Verdict.NOTE, "nobody reads SAMSTUDY_DATABASE")
        assert finding.remedy == "did you mean SAMSTUDY_DATABASE_URL?"

    def test_passwords_are_not_shown(self) -> None:
        shown = shown_settings(Settings(database_url="postgresql+psycopg://me:s3cret@db:5432/x"))
        assert shown["database_url"] == "postgresql+psycopg://me:***@db:5432/x"
        assert "s3cret" not in str(shown_settings(Settings(RAY_AUTH_TOKEN="s3cret", api_key="s3cret")))

    @pytest.mark.parametrize(
        "url",
        [
            "postgresql+psycopg://u:s3/cret@h/db",
            "postgresql+psycopg://u:s3@cret@h/db",
            "postgresql+psycopg://h/db?user=u&password=s3;cret",
            "postgresql+psycopg://me@corp:s3'cret@h/db",
            "http://s3cret@h/db",
        ],
    )
    def test_no_part_of_a_password_is_shown(self, url: str) -> None:
        shown = str(shown_settings(Settings(database_url=url), only_set=True))
        assert "s3" not in shown
        assert "cret" not in shown

    @pytest.mark.parametrize("password", ["s3cret", "s3/cret", "s3@cret", "s3?cret", "s3%2Fcret", "[s3cret]"])
    def test_no_finding_shows_a_password(self, password: str, unused_port: int) -> None:
        url = f"http://u:{password}@127.0.0.1:{unused_port}"
        current = Settings(url=url, ray_jobs_url=url, mlflow_url=url)
        found = [
            examining_services.examine_api(current, None, store_is_missing=False),
            examining_services.examine_mlflow(url, None),
            *examining_services.examine_ray(current, None),
            *examining_machine.examine_ports({"MLflow": url}),
        ]
        shown = " ".join(line for finding in found for line in lines(finding, width=200))
        assert shown.count("nothing answers") == 2
        assert shown.count("127.0.0.1") == 3
        assert "s3" not in shown
        assert "cret" not in shown

    def test_what_is_on_this_machine_is_not_asked_through_a_proxy(
        self, answering: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mlflow, ray = answering(a_mlflow()), answering(ray_nodes({"CPU": 8}))
        with proxy_of_the_environment(monkeypatch) as asked:
            assert examining_services.examine_mlflow(mlflow, None).verdict is Verdict.WELL
            found = list(examining_services.examine_ray(Settings(ray_jobs_url=ray), None))
            assert {finding.verdict for finding in found} == {Verdict.WELL}
            assert asked == []
            elsewhere = examining_services.examine_mlflow("http://mlflow.invalid", None)
        assert (elsewhere.verdict, asked[0]) == (Verdict.WELL, "http://mlflow.invalid/health")

    @pytest.mark.parametrize("width", [60, 80, 200])
    def test_a_finding_fits_the_terminal(self, width: int) -> None:
        shown = [
            re.sub(r"\x1b\[\d+m", "", line) for line in lines(wrong("thing", "said " * 40, "do " * 60), width=width)
        ]
        assert max(map(len, shown)) <= width
        assert shown[0].startswith("✗ thing")
        assert sum("→" in line for line in shown) == 1

    def test_what_others_wrote_cannot_pretend_to_be_a_finding(self) -> None:
        assert len(lines(note("queue", "waits\n✓ API            ready\x1b[2J"), width=200)) == 1


class TestTheStore:
    def test_looking_at_a_store_does_not_make_one(self, tmp_path: Path) -> None:
        with examining_store.opened_store(Settings(home=tmp_path / "home")) as (database, (finding,)):
            assert database is None
        assert finding.verdict is Verdict.WRONG
        assert not (tmp_path / "home").exists()

    @pytest.mark.parametrize(("revision", "remedy"), [("0001", "samstudy migrate"), ("9999", "install the version")])
    def test_a_schema_of_another_version_says_what_to_do(
        self, revision: str, remedy: str, database: Database, api_settings: Settings
    ) -> None:
        with database.writing() as connection:
            connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{revision}'")
        with examining_store.opened_store(api_settings) as (found, (finding,)):
            assert found is None
        assert finding.verdict is Verdict.WRONG
        assert remedy in finding.remedy

    def test_a_server_that_is_not_there_is_said(self, tmp_path: Path) -> None:
        pytest.importorskip("psycopg")
        url = "postgresql+psycopg://nobody@127.0.0.1:1/none"
        with examining_store.opened_store(Settings(home=tmp_path, database_url=url)) as (_, (finding,)):
            assert "does not answer" in finding.said
        assert "start the database" in finding.remedy

    def test_what_packages_add_is_named_and_what_they_get_wrong_too(self) -> None:
        ours = ModelFacts("mlp", "samstudy's", ("classification",))
        theirs = ModelFacts("two_layers", "another's", ("classification",), code="my_lab.networks:two_layers")
        found = list(examining_machine.plugin_findings([ours, theirs], ["net (samstudy.models, lab:NET of lab): no"]))
        assert [(finding.verdict, finding.said) for finding in found] == [
            (Verdict.WELL, "two_layers"),
            (Verdict.WRONG, "net (samstudy.models, lab:NET of lab): no"),
        ]
        assert list(examining_machine.plugin_findings([ours], [])) == []

    def test_a_package_that_is_broken_is_found(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("trainers.plugins.LEFT_OUT", ["net: no"])
        assert [finding.said for finding in examining_machine.examine_machine(tmp_path)].count("net: no") == 1

    def test_a_full_disk_is_said(self, migrated_store: Path, tmp_path: Path) -> None:
        with small_disk(tmp_path / "small", size_bytes=1024 * 1024) as disk:
            (disk.path / "samstudy.db").write_bytes(migrated_store.read_bytes())
            disk.fill()
            with examining_store.opened_store(Settings(home=disk.path)) as (_, findings):
                assert [finding.verdict for finding in findings].count(Verdict.WRONG) >= 1
            assert any(finding.said.startswith("0 MiB left on the disk of ") for finding in findings)

    def test_storage_is_really_written_to_and_left_clean(self, tmp_path: Path) -> None:
        assert examining_store.examine_storage((tmp_path / "storage").as_uri()).verdict is Verdict.WELL
        assert list((tmp_path / "storage").iterdir()) == []

    @pytest.mark.parametrize("uri", ["nonsense", "file:///proc/nowhere", "sftp://host/x"])
    def test_storage_that_takes_nothing_is_said(self, uri: str) -> None:
        finding = examining_store.examine_storage(uri)
        assert finding.verdict is Verdict.WRONG
        assert "SAMSTUDY_STORAGE" in finding.remedy


class TestTheWork:
    def findings(self, database: Database) -> dict[str, Finding]:
        return by_name(examining_store.examine_work(WatchingStore(database)))

    def test_a_store_that_nobody_works_on_is_wrong(self, database: Database) -> None:
        finding = self.findings(database)["controller"]
        assert (finding.verdict, "none leads" in finding.said) == (Verdict.WRONG, True)

    def test_a_controller_that_has_died_is_named(self, database: Database) -> None:
        ago = datetime.now(UTC) - timedelta(minutes=5)
        with database.writing() as connection:
            lease = {"name": "controller", "holder": "dead:1", "expires_at": ago}
            connection.execute(insert(tables.leases).values(**lease))
        finding = self.findings(database)["controller"]
        assert "dead:1 was the last one, its lease ran out 5 min ago" in finding.said

    def test_overdue_drivers_are_counted(self, database: Database, life: Life) -> None:
        for _ in range(2):
            life.start(life.create())
        assert self.findings(database)["drivers"].said == "2 studies have a driver, none is overdue"
        ago = datetime.now(UTC) - timedelta(seconds=30)
        with database.writing() as connection:
            connection.execute(update(tables.studies).values(lease_expires_at=ago))
        finding = self.findings(database)["drivers"]
        assert (finding.verdict, finding.said[:14]) == (Verdict.NOTE, "2 of 2 overdue")

    def test_a_study_that_trains_nothing_for_long_is_named_with_its_reason(
        self, database: Database, life: Life
    ) -> None:
        driver = life.start(life.create())
        life.propose(driver, {"lambda": 0.0, "rho": 0.1})
        driver.heartbeat(3600, "no node has a GPU")
        assert "idle" not in self.findings(database)
        with database.writing() as connection:
            connection.execute(update(tables.events).values(at=datetime.now(UTC) - timedelta(hours=3)))
        first, last = [f for f in examining_store.examine_work(WatchingStore(database)) if f.what == "idle"]
        assert first.said == (
            f"{driver.study_id} (lambda-rho-digits) has a driver and trains nothing: no node has a GPU"
        )
        assert (last.verdict, last.said) == (Verdict.NOTE, "1 study trains nothing, the longest for 3 h")
        assert "samstudy pause ID" in last.remedy

    def test_studies_that_wait_say_why(self, database: Database, life: Life) -> None:
        ids = [life.create().id for _ in range(7)]
        ReconcilingStore(database).set_waiting_reason(ids, "the cluster is down")
        said = [f.said for f in examining_store.examine_work(WatchingStore(database)) if f.what == "queue"]
        assert len(said) == 6
        assert said[0] == f"{ids[0]} (lambda-rho-digits) waits: the cluster is down"
        assert said[-1].startswith("2 more wait")

    def test_what_mlflow_has_lacked_for_long_is_wrong(self, database: Database, life: Life) -> None:
        life.create()
        assert self.findings(database)["export"].verdict is Verdict.WELL
        ago = datetime.now(UTC) - timedelta(hours=3)
        with database.writing() as connection:
            connection.execute(update(tables.events).values(at=ago))
        finding = self.findings(database)["export"]
        assert (finding.verdict, finding.said) == (Verdict.WRONG, "MLflow lacks something of 1 study, since 3 h")

    def test_trials_with_a_warning_are_counted(self, database: Database, life: Life) -> None:
        driver = life.start(life.create())
        for trial in life.propose(driver, {"lambda": 0.0, "rho": 0.1}, (0, 1)):
            life.begin(driver, trial)
            warning = "the checkpoint of epoch 1 could not be written" if trial.seed == 0 else None
            driver.record([EpochReported(trial.id, 1, 1, {"val_accuracy": 0.5}, warning)])
        finding = self.findings(database)["trials"]
        assert (finding.verdict, finding.said) == (Verdict.NOTE, "1 running trial has had a warning")


class TestKeys:
    @pytest.mark.parametrize(
        ("host", "allowed", "verdict"),
        [
            ("127.0.0.1", False, Verdict.WELL),
            ("0.0.0.0", True, Verdict.NOTE),
            ("0.0.0.0", False, Verdict.WRONG),
        ],
    )
    def test_none_are_wrong_where_others_reach_the_api(
        self, host: str, allowed: bool, verdict: Verdict, database: Database
    ) -> None:
        current = Settings(host=host, allow_open_access=allowed)
        assert examining_services.examine_keys(current, KeyStore(database)).verdict is verdict
        KeyStore(database).create(NewKey(owner="ada", role=Role.ADMIN))
        assert examining_services.examine_keys(current, KeyStore(database)).verdict is Verdict.WELL


class TestMlflow:
    def test_a_server_without_our_runs_is_another(self, answering: Callable[..., str]) -> None:
        finding = examining_services.examine_mlflow(answering(a_mlflow()), "our-run")
        assert (finding.verdict, "not the runs of this store" in finding.said) == (Verdict.WRONG, True)
        assert "SAMSTUDY_MLFLOW_URL" in finding.remedy

    def test_before_the_first_study_any_server_will_do(self, answering: Callable[..., str]) -> None:
        assert examining_services.examine_mlflow(answering(a_mlflow()), None).verdict is Verdict.WELL

    def test_one_that_fails_is_said(self, answering: Callable[..., str]) -> None:
        finding = examining_services.examine_mlflow(answering({"/health": (500, "")}), None)
        assert "HTTP 500" in finding.said

    def test_one_with_accounts_is_asked_as_the_exporter_asks(
        self, answering: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        url = answering(a_mlflow("our-run"), token="right")
        refused = examining_services.examine_mlflow(url, "our-run")
        assert (refused.verdict, "does not let us in (HTTP 401)" in refused.said) == (Verdict.WRONG, True)
        assert "MLFLOW_TRACKING_TOKEN" in refused.remedy
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "right")
        assert examining_services.examine_mlflow(url, "our-run").verdict is Verdict.WELL

    def test_one_that_knows_itself_by_another_name_is_told_so(self, answering: Callable[..., str]) -> None:
        refusal = (403, "Invalid Host header - possible DNS rebinding attack detected")
        url = answering({"/health": (200, "OK"), "/api/2.0/mlflow/experiments/search": refusal})
        finding = examining_services.examine_mlflow(url, None)
        assert (finding.verdict, finding.remedy) == (Verdict.WRONG, f"start it with --allowed-hosts={url[7:]}")

    def test_certificates_that_are_not_there_are_not_taken_for_a_server_that_is_not(
        self, answering: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", "/nowhere.pem")
        finding = examining_services.examine_mlflow(answering(a_mlflow()), None)
        assert (finding.verdict, "certificates of /nowhere.pem cannot be read" in finding.said) == (Verdict.WRONG, True)

    def test_what_only_mlflows_client_can_do_is_not_called_wrong(
        self, answering: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_AUTH", "a-plugin")
        finding = examining_services.examine_mlflow(answering(a_mlflow(), token="right"), None)
        assert (finding.verdict, "come in by MLFLOW_TRACKING_AUTH" in finding.said) == (Verdict.NOTE, True)


class TestRay:
    def findings(self, url: str, token: str = "") -> list[Finding]:
        current = Settings(ray_jobs_url=url, RAY_AUTH_TOKEN=token)
        return list(examining_services.examine_ray(current, None))

    def test_a_token_that_it_does_not_take_is_said(self, answering: Callable[..., str]) -> None:
        url = answering(ray_nodes({"CPU": 1}), token="right")
        for token, said in (("", "wants a token"), ("wrong", "does not take this RAY_AUTH_TOKEN")):
            (finding,) = self.findings(url, token)
            assert (finding.verdict, said in finding.said) == (Verdict.WRONG, True)
        assert [finding.verdict for finding in self.findings(url, "right")] == [Verdict.WELL, Verdict.WELL]

    def test_a_folder_as_the_storage_of_several_nodes_is_noted(
        self, answering: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        head, worker = {"CPU": 0.0}, {"CPU": 8.0}
        assert len(self.findings(answering(ray_nodes(head, worker)))) == 2
        several = answering(ray_nodes(worker, worker))
        assert self.findings(several)[-1].verdict is Verdict.NOTE
        assert "2 nodes train: each must see the same one" in self.findings(several)[-1].said
        monkeypatch.setenv("SAMSTUDY_STORAGE", "s3://bucket/studies")
        assert len(self.findings(several)) == 2

    @pytest.mark.parametrize("nodes", [(), ({},)])
    def test_a_cluster_that_cannot_train_is_wrong(
        self, nodes: tuple[dict[str, float], ...], answering: Callable[..., str]
    ) -> None:
        ray, cluster = self.findings(answering(ray_nodes(*nodes)))
        assert (ray.verdict, cluster.verdict) == (Verdict.WELL, Verdict.WRONG)
        assert "ray start" in cluster.remedy

    def test_a_cluster_without_gpus_says_so(self, answering: Callable[..., str]) -> None:
        _, nodes = self.findings(answering(ray_nodes({"CPU": 2})))
        assert (nodes.verdict, nodes.said) == (Verdict.WELL, "1 alive, 2 CPUs, no GPU: studies that ask for one wait")
