"""What is sent to break the service: a clear 4xx that names the field, and nothing stored."""

from __future__ import annotations

import contextlib
import json
import socket
import time
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from starlette.testclient import TestClient

from service.store.database import Database
from service.store.studies import StudyFilter, StudyStore
from tests.service.api.stores import on_sqlite

if TYPE_CHECKING:
    from tests.service.conftest import RunningApi

JSON = {"Content-Type": "application/json"}


@pytest.fixture(autouse=True)
def _nothing_is_stored(database: Database) -> Iterator[None]:
    """Holds for every test here: whatever is refused leaves no study behind."""
    yield
    assert StudyStore(database).page(StudyFilter(), page_size=1).studies == []


def posted(api: TestClient, body: object) -> Any:
    return api.post("studies", content=json.dumps(body), headers=JSON)


def assert_refused(answer: Any, field: str, status: int = 422) -> None:
    assert answer.status_code == status, answer.text[:500]
    assert answer.headers["content-type"] == "application/problem+json"
    fields = [problem["field"] for problem in answer.json()["errors"]]
    assert any(found.startswith(field) for found in fields), answer.text[:500]


@on_sqlite
class TestSize:
    def test_a_body_above_one_mebibyte_is_413(self, api: TestClient, a_spec: dict[str, Any]) -> None:
        answer = posted(api, {**a_spec, "description": "x" * 2**20})
        assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")

    def test_so_is_one_that_does_not_say_its_length(self, running_api: RunningApi) -> None:
        def chunks() -> Iterator[bytes]:
            yield b'{"name": "'
            for _ in range(20):
                yield b"x" * 2**17

        with httpx.Client(base_url=running_api.url, trust_env=False) as client:
            try:
                answer = client.post("/api/v1/studies", content=chunks(), headers=JSON)
            except httpx.WriteError:  # refused, and the connection closed, while we still wrote
                return
        assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")

    def test_a_length_that_is_a_lie_is_read_no_further(self, running_api: RunningApi) -> None:
        head = b"POST /api/v1/studies HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        answer = raw(running_api, head + b"Content-Length: 99999999999\r\n\r\n" + b"x" * (2**20 + 2))
        assert b" 413 " in answer.partition(b"\r\n")[0]

    @pytest.mark.parametrize("opening", [b"[", b'{"a":'])
    def test_a_depth_of_100_000_is_400(self, api: TestClient, opening: bytes) -> None:
        answer = api.post("studies", content=opening * 100_000, headers=JSON)
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed_json")

    @pytest.mark.parametrize("section", ["labels", "train", "search_space", "objective", "budget"])
    def test_a_depth_that_json_bears_is_422(self, api: TestClient, a_spec: dict[str, Any], section: str) -> None:
        deep: object = 1
        for _ in range(200):
            deep = {"a": deep}
        assert_refused(posted(api, {**a_spec, section: deep}), section)

    def test_a_grid_of_10_000_points_beyond_the_budget(self, api: TestClient, a_spec: dict[str, Any]) -> None:
        space = {
            "lambda": {"type": "float", "low": 0, "high": 1, "step": 0.01},
            "rho": {"type": "float", "low": 0.001, "high": 0.5, "step": 0.001},
        }
        assert_refused(posted(api, {**a_spec, "search_space": space}), "budget.max_trials")

    def test_a_grid_beyond_all_numbers(self, api: TestClient, a_spec: dict[str, Any]) -> None:
        steps = {"type": "float", "low": 0.1, "high": 0.9, "step": 0.000001}
        space = dict.fromkeys(("lambda", "rho", "momentum", "lr", "weight_decay"), steps)
        assert_refused(posted(api, {**a_spec, "search_space": space}), "budget.max_trials")

    def test_choices_without_end(self, api: TestClient, a_spec: dict[str, Any]) -> None:
        space = {"rho": {"type": "categorical", "choices": [index / 1e6 for index in range(15_000)]}}
        assert_refused(posted(api, {**a_spec, "search_space": space}), "search_space.rho.choices")

    def test_more_keys_than_a_section_has(self, api: TestClient, a_spec: dict[str, Any]) -> None:
        for section in ("labels", "train", "search_space", "budget"):
            assert_refused(posted(api, {**a_spec, section: {f"k{index}": 1 for index in range(15_000)}}), section)

    def test_more_values_than_a_spec_has(self, api: TestClient, a_spec: dict[str, Any]) -> None:
        assert_refused(posted(api, {**a_spec, "replicates": {"seeds": [0] * 100_000}}), "spec")

    @pytest.mark.parametrize(
        ("labels", "field"),
        [
            ({"k": "x" * 256}, "labels.k"),
            ({"k" * 64: "x"}, "labels."),
            ({f"k{index}": "x" for index in range(33)}, "labels"),
            ({"k": "x" * 500_000}, "labels.k"),
            ({"k" * 500_000: "x"}, "labels"),
            ({"": "x"}, "labels"),
            ({"k": {"a": "b"}}, "labels.k"),
            ({"k": None}, "labels.k"),
        ],
    )
    def test_huge_and_strange_labels(
        self, api: TestClient, a_spec: dict[str, Any], labels: dict[str, Any], field: str
    ) -> None:
        answer = posted(api, {**a_spec, "labels": labels})
        assert_refused(answer, field)
        assert len(answer.content) < 10_000

    def test_many_problems_make_no_endless_answer(self, api: TestClient, a_spec: dict[str, Any]) -> None:
        answer = posted(api, {**a_spec, "replicates": {"seeds": [-1] * 15_000}})
        assert_refused(answer, "replicates.seeds")
        assert len(answer.json()["errors"]) == 101
        assert answer.json()["errors"][-1]["message"] == "and 14,900 problems more like these"

    def test_rules_over_many_combinations_take_no_minutes(self, api: TestClient, a_spec: dict[str, Any]) -> None:
        values = [(index + 1) / 1_000 for index in range(1_000)]
        parent = {"lambda": {"type": "categorical", "choices": values}}
        children = ("rho", "momentum", "lr", "weight_decay", "dropout", "sampling", "optimizer")
        child = {"type": "categorical", "choices": values, "when": {"lambda": values}}
        started = time.monotonic()
        answer = posted(api, {**a_spec, "search_space": {**parent, **dict.fromkeys(children, child)}})
        assert time.monotonic() - started < 20  # it took minutes before there was a limit; now about a second
        assert_refused(answer, "search_space")

    def test_seeds_without_end(self, api: TestClient, a_spec: dict[str, Any]) -> None:
        answer = posted(api, {**a_spec, "replicates": {"seeds": list(range(10_000))}})
        assert_refused(answer, "replicates.seeds")


TRICKS = ["../../etc/passwd", "..\\x", "a/b", "/", "//", "a\x00b", "%2e%2e/"]


class TestPaths:
    @on_sqlite
    @pytest.mark.parametrize("name", TRICKS)
    def test_a_name_leads_nowhere(self, api: TestClient, a_spec: dict[str, Any], name: str) -> None:
        assert_refused(posted(api, {**a_spec, "name": name}), "name")

    @pytest.mark.parametrize(
        "path",
        [
            "studies/..%2F..%2Fkeys",
            "studies/%2e%2e/keys",
            "studies/..;/keys",
            "studies//",
            "studies/",
            "studies/a%2Fb",
            "studies/a/trials/..%2f..%2f..%2fetc%2fpasswd/logs",
            "studies/a/trials/%2e%2e/logs",
            "studies/a%00/trials/b%00/logs",
            "studies/%ff%fe",
            "studies/%0d%0aSet-Cookie:x=1",
            "studies/" + "a" * 5_000,
            "studies/a/export?format=../../x",
            "search-spaces/..%2F..%2Fetc%2Fpasswd",
            "search-spaces/%00",
            "studies/'; DROP TABLE studies;--",
        ],
    )
    def test_a_path_leads_nowhere(self, api: TestClient, path: str) -> None:
        answer = api.get(path)
        assert answer.status_code in (404, 422), answer.text[:500]
        assert answer.headers["content-type"] == "application/problem+json"
        assert "root:" not in answer.text
        assert "set-cookie" not in answer.headers

    @on_sqlite
    @pytest.mark.parametrize(
        ("section", "field"),
        [
            ({"search_space": "../../etc/passwd"}, "search_space"),
            ({"train": {"dataset": "../../etc/passwd"}}, "train.dataset"),
            ({"train": {"dataset": "http://example.org/x.pkl"}}, "train.dataset"),
            ({"train": {"model": "os.system"}}, "train.model"),
            ({"train": {"model": "__import__('os')"}}, "train.model"),
            ({"objective": {"metric": "__class__", "mode": "max"}}, "objective.metric"),
            ({"search_space": {"__class__": {"type": "categorical", "choices": [1]}}}, "search_space"),
        ],
    )
    def test_names_of_code_and_files_are_looked_up_in_registries_only(
        self, api: TestClient, a_spec: dict[str, Any], section: dict[str, Any], field: str
    ) -> None:
        assert_refused(posted(api, {**a_spec, **section}), field)


UNSOUND = {
    "line feed": "a\nb",
    "carriage return": "a\rb",
    "both": "a\r\nSet-Cookie: x",
    "NUL": "a\x00b",
    "escape": "a\x1b[31mb",
    "delete": "a\x7fb",
    "C1 control": "a\x85b",
    "line separator": "a\u2028b",
    "no-break space": "a\u00a0b",
    "lone surrogate": "a\ud800b",
    "private use": "a\ue000b",
    "unassigned": "a\U000e0fffb",
    "zero width space": "a\u200bb",
    "zero width joiner": "a\u200db",
    "byte order mark": "\ufeffab",
    "soft hyphen": "a\u00adb",
    "right-to-left override": "a\u202eb",
    "isolate": "a\u2066b",
    "variation selector": "a\ufe0fb",
    "Hangul filler": "a\u3164b",
    "blank of Braille": "a\u2800b",
    "grapheme joiner": "a\u034fb",
    "tag": "a\U000e0041b",
}
LOOKALIKES = {
    "not normalised": unicodedata.normalize("NFD", "réseau"),
    "Angstrom sign": "\u212b",
    "Cyrillic in a Latin word": "p\u0430ypal",
    "Greek omicron in a Latin word": "m\u03bfdel",
    "full width": "\uff46\uff55\uff4c\uff4c",
    "mathematical": "\U0001d41a\U0001d41b",
    "ligature": "\ufb01ne",
    "Roman numeral": "\u2163",
    "micro sign": "\u00b5",
    "Cyrillic only": "\u0441\u043e\u0441\u043e",
    "division slash": "a\u2215b",
    "hyphen": "lambda\u2010rho",
    "full width colon": "model\uff1ax",
}


@on_sqlite
class TestText:
    @pytest.mark.parametrize("text", [*UNSOUND.values(), *LOOKALIKES.values()], ids=[*UNSOUND, *LOOKALIKES])
    def test_what_is_unseen_or_looks_like_something_else_is_no_name(
        self, api: TestClient, a_spec: dict[str, Any], text: str
    ) -> None:
        assert_refused(posted(api, {**a_spec, "name": text}), "name")
        answer = posted(api, {**a_spec, "labels": {text: "x"}})
        assert_refused(answer, "labels")
        assert answer.text.isascii()

    @pytest.mark.parametrize("text", UNSOUND.values(), ids=UNSOUND)
    def test_what_is_unseen_is_no_labels_value(self, api: TestClient, a_spec: dict[str, Any], text: str) -> None:
        assert_refused(posted(api, {**a_spec, "labels": {"k": text}}), "labels.k")

    def test_two_spellings_of_a_key_are_not_two_keys(self, api: TestClient, a_spec: dict[str, Any]) -> None:
        labels = {unicodedata.normalize(form, "réseau"): form for form in ("NFC", "NFD")}
        assert len(labels) == 2
        assert_refused(posted(api, {**a_spec, "labels": labels}), "labels")

    @pytest.mark.parametrize("text", ["a\x00b", "a\x1b[31mb", "a\u202eb", "a\ud800b", "a\rb"])
    def test_a_description_has_lines_and_nothing_unseen(
        self, api: TestClient, a_spec: dict[str, Any], text: str
    ) -> None:
        assert_refused(posted(api, {**a_spec, "description": text}), "description")


@on_sqlite
class TestNumbers:
    @pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity", "-Infinity", "1" + "0" * 400])
    @pytest.mark.parametrize(
        ("section", "field"),
        [
            ('"replicates": {"seeds": [%s]}', "replicates.seeds"),
            ('"budget": {"max_trials": %s}', "budget.max_trials"),
            ('"budget": {"max_wallclock_s": %s}', "budget.max_wallclock_s"),
            ('"resources_per_trial": {"cpu": %s}', "resources_per_trial.cpu"),
            ('"train": {"lr": %s}', "train.lr"),
            ('"search_space": {"rho": {"type": "float", "low": 0.1, "high": %s}}', "search_space.rho"),
            ('"search_space": {"rho": {"type": "categorical", "choices": [%s]}}', "search_space.rho"),
        ],
    )
    def test_what_is_no_number_is_named_by_its_field(
        self, api: TestClient, section: str, field: str, number: str
    ) -> None:
        start = (
            '{"name": "x", "search_space": "paper_lambda_rho", "objective": {"metric": "val_accuracy", "mode": "max"}, '
        )
        if section.startswith('"search_space"'):
            start = start.replace('"search_space": "paper_lambda_rho", ', "")
        answer = api.post("studies", content=start + section % number + "}", headers=JSON)
        assert_refused(answer, field)

    def test_digits_without_end_are_400(self, api: TestClient) -> None:
        answer = api.post("studies", content=b'{"name": ' + b"1" * 100_000 + b"}", headers=JSON)
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed_json")

    def test_a_key_that_is_there_twice_is_400(self, api: TestClient) -> None:
        answer = api.post("studies", content=b'{"name": "a", "labels": {"k": "1", "k": "2"}}', headers=JSON)
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed_json")
        assert "'k'" in answer.json()["detail"]

    @pytest.mark.parametrize(
        "query",
        [
            "page_size=99999999999999999999999",
            "page_size=-1",
            "page_size=1e3",
            "page_token=%00",
            "page_token=" + "A" * 499,
            "page_token=bnVsbA==",
            "state=%00",
            "label=%00:x",
            "label=a",
            "name=%00",
            "owner=%00",
            "created_after=never",
            "order_by=id;DROP",
        ],
    )
    def test_a_query_that_makes_no_sense_is_422(self, api: TestClient, query: str) -> None:
        answer = api.get(f"studies?{query}")
        if answer.status_code == 200:  # a parameter that there is not is none of our business
            assert query.partition("=")[0] not in {p["name"] for p in parameters(api)}
            return
        assert_refused(answer, query.partition("=")[0])


def parameters(api: TestClient) -> list[dict[str, Any]]:
    document: dict[str, Any] = api.get("http://testserver/openapi.json").json()
    found: list[dict[str, Any]] = document["paths"]["/api/v1/studies"]["get"]["parameters"]
    return found


def raw(running_api: RunningApi, request: bytes, *, timeout_s: float = 10) -> bytes:
    """What the server answers to these bytes, until it closes or says nothing more for a moment."""
    with socket.create_connection(("127.0.0.1", running_api.port), timeout=timeout_s) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(request)
        answer = b""
        while b"\r\n\r\n" not in answer:
            try:
                part = connection.recv(65_536)
            except ConnectionResetError:
                break
            if not part:
                break
            answer += part
        return answer


@on_sqlite
class TestHeaders:
    """On the wire, where no client's good manners stand between."""

    @pytest.mark.parametrize(
        "header",
        [
            b"Idempotency-Key: a\rb",
            b"Idempotency-Key: a\nb",
            b"Idempotency-Key: a\x00b",
            b"Idempotency-Key: a\x1bb",
            b"Idempotency-Key: \xe9",
            b"Idempotency-Key: " + b"k" * 256,
            b"Idempotency-Key:",
        ],
    )
    def test_a_header_that_is_none_of_printable_ascii_is_refused(
        self, running_api: RunningApi, a_spec: dict[str, Any], header: bytes
    ) -> None:
        body = json.dumps(a_spec).encode()
        head = b"POST /api/v1/studies HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        answer = raw(running_api, head + header + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert answer.split(b" ", 2)[1] in (b"400", b"422"), answer[:300]

    @pytest.mark.parametrize("value", [b"a\rb: c", b"a\x1bb", b"<script>", b"x" * 65, b"\xff"])
    def test_a_request_id_comes_back_only_where_it_is_sound(self, running_api: RunningApi, value: bytes) -> None:
        answer = raw(running_api, b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Request-ID: " + value + b"\r\n\r\n")
        assert value not in answer
        assert answer.split(b" ", 2)[1] in (b"200", b"400")

    def test_header_without_end_is_cut_off(self, running_api: RunningApi) -> None:
        answer = raw(running_api, b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 2**21 + b"\r\n\r\n")
        assert answer == b"" or answer.split(b" ", 2)[1] in (b"400", b"431")

    @pytest.mark.parametrize(
        "request_line", [b"GET  HTTP/1.1", b"\x16\x03\x01\x02", b"GET /\x00 HTTP/1.1", b"GET / HTTP/9.9"]
    )
    def test_what_is_no_http_harms_nobody(self, running_api: RunningApi, request_line: bytes) -> None:
        raw(running_api, request_line + b"\r\nHost: x\r\n\r\n")
        assert httpx.get(f"{running_api.url}/healthz", trust_env=False).status_code == 200

    def test_two_lengths_are_refused(self, running_api: RunningApi) -> None:
        head = b"POST /api/v1/studies HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        lengths = b"Content-Length: 2\r\nContent-Length: 3\r\n"
        assert b" 400 " in raw(running_api, head + lengths + b"\r\n{}").partition(b"\r\n")[0]

    def test_a_length_beside_chunks_is_not_believed(self, running_api: RunningApi) -> None:
        head = b"POST /api/v1/studies HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        both = b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n"
        answer = raw(running_api, head + both)
        assert answer.split(b" ", 2)[1] in (b"400", b"422"), answer[:300]
