"""The log of a process, as it is really written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from typing import Any

import pytest

from service.logs import redacted

FORGED = "x\r\n2026-01-01T00:00:00.000Z INFO service: forged\x1b[2J\u2028\x85more"
SECRET = "sam_abcdefghjkmn_" + "0123456789abcdef" * 4
FAILING = "try: raise ValueError(TEXT)\nexcept ValueError: log.exception('no')"
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z [A-Z]+ [\w.]+: ")


def logged(code: str, *, log_format: str = "json", level: str = "info", fields: str = "") -> list[str]:
    """What a process with this code writes to stderr, line by line."""
    preparation = (
        "import logging, threading\nfrom service import logs\n"
        f"FORGED, SECRET = {FORGED!r}, {SECRET!r}\n"
        f"logs.configure({log_format!r}, {level!r}{fields})\nlog = logging.getLogger('service.x')\n"
    )
    command = [sys.executable, "-c", preparation + code]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60, check=False)
    assert done.stdout == ""
    return done.stderr.removesuffix("\n").split("\n") if done.stderr else []


def objects(code: str, **options: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in logged(code, **options)]


def test_a_line_is_an_object_with_time_level_logger_and_message() -> None:
    (line,) = objects("log.info('λ is %s', 0.5)")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {"level": "INFO", "logger": "service.x", "message": "λ is 0.5"}


def test_a_secret_that_is_blotted_out_leaves_a_line_whole() -> None:
    text = 'Get "s3://bucket/x?secret_key=abc": dial tcp\nGet /x?token=abc\nand so on'
    (line,) = objects(f"log.warning({text!r})")
    assert line["message"] == text.replace("abc", "***")


def test_no_part_of_a_secret_is_left_in_json() -> None:
    (line,) = objects("log.warning('GET /x?password=p\u00e4ss', extra={'urls': ['http://u:p\u00e4ss@h'], 'code': 7})")
    assert (line["message"], line["urls"], line["code"]) == ("GET /x?password=***", ["http://u:***@h"], 7)


def test_a_field_that_is_no_text_is_shown_as_json_has_it() -> None:
    code = "import datetime\nat = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)\n"
    (line,) = objects(code + "log.info('a', extra={'at': at, 'why': ValueError('http://u:pw@h')})")
    assert (line["at"], line["why"]) == ("2026-01-01T00:00:00+00:00", "ValueError: http://u:***@h")


def test_an_exception_is_in_its_line() -> None:
    (line,) = objects("try: 1 / 0\nexcept ZeroDivisionError: log.exception('no')")
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ZeroDivisionError: division by zero")


def test_lines_say_what_they_are_about() -> None:
    code = (
        "log.info('a')\n"
        "with logs.about(trial_id='t'):\n"
        "    with logs.about(request_id='r', trial_id='u'): log.info('b')\n"
        "    log.info('c', extra={'trial_id': 'v'})\n"
        "log.info('d')\n"
    )
    lines = objects(code, fields=", study_id='s', driver_attempt=2")
    assert {(line["study_id"], line["driver_attempt"]) for line in lines} == {("s", 2)}
    assert [(line.get("trial_id"), line.get("request_id")) for line in lines] == [
        (None, None),
        ("u", "r"),
        ("v", None),
        (None, None),
    ]


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_what_is_logged_cannot_forge_a_line(log_format: str) -> None:
    code = "log.info(FORGED, extra={'study_id': FORGED})\n" + FAILING.replace("TEXT", "FORGED")
    lines = logged(code, log_format=log_format)
    if log_format == "json":
        assert [json.loads(line)["logger"] for line in lines] == ["service.x", "service.x"]
        assert json.loads(lines[0])["message"] == FORGED
    else:
        own = [line for line in lines if LINE.match(line)]
        assert [line.split()[2] for line in own] == ["service.x:", "service.x:"]
        assert all(line.startswith("  | ") for line in lines if line not in own)
    assert not any(character in "".join(lines) for character in "\r\x1b\u2028\x85")


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_secrets_are_not_logged(log_format: str) -> None:
    code = "log.info('%s postgresql://me:s3cret@db/x', SECRET)\n" + FAILING.replace("TEXT", "SECRET")
    text = "\n".join(logged(code, log_format=log_format))
    assert SECRET[-64:] not in text
    assert "s3cret" not in text
    assert text.count("sam_abcdefghjkmn_***") == 2
    assert "postgresql://me:***@db/x" in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no 's3://KEY:abc/def@bucket/p'", "no 's3://KEY:***@bucket/p'"),
        ("s3://KEY:a/b+c=@bucket/p?region=x then a@b", "s3://KEY:***@bucket/p?region=x then a@b"),
        ("http://u:pa/ss@h", "http://u:***@h"),
        ("no https://token@h/x and http://h/of/@team", "no https://***@h/x and http://h/of/@team"),
        ("https://h/p?pwd=X&apikey=Y&auth=Z", "https://h/p?pwd=***&apikey=***&auth=***"),
        ("https://h/p?password=a\\X&y=1", "https://h/p?password=***&y=1"),
        ("http://u:p@ss?w#rd@h/x", "http://u:***@h/x"),
        ("redis://:pw@h", "redis://:***@h"),
        ("('1', 'whsec_0sIGC1yFabcdefgh+/A=', 2)", "('1', 'whsec_***', 2)"),
        ("https://h/p?password=X&y=1", "https://h/p?password=***&y=1"),
        ("https://h/p?a=1&client_secret=X", "https://h/p?a=1&client_secret=***"),
        ("https://h/p?token=X#top", "https://h/p?token=***"),
        (
            "https://h/p?X-Amz-Signature=X&sig=Y&account_key=Z",
            "https://h/p?X-Amz-Signature=***&sig=***&account_key=***",
        ),
        ("postgresql+psycopg://u:p@ss@h/db", "postgresql+psycopg://u:***@h/db"),
        ("postgresql+psycopg://me@corp:pw@h/db", "postgresql+psycopg://me@corp:***@h/db"),
        ("no 'postgresql://u:it's@h/db'", "no 'postgresql://u:***@h/db'"),
        ("postgresql://h/db?user=u&password=S;t", "postgresql://h/db?user=u&password=***"),
        ("postgresql://h/db?sslpassword=it's&user=u", "postgresql://h/db?sslpassword=***&user=u"),
        ("no 'https://h/p?token=X', again", "no 'https://h/p?token=***', again"),
        ("http://127.0.0.1:8321/x?label=team=a", "http://127.0.0.1:8321/x?label=team=a"),
        ("s3://b/p?scheme=http&endpoint_override=minio:9000", "s3://b/p?scheme=http&endpoint_override=minio:9000"),
    ],
)
def test_what_is_secret_in_a_url_is_blotted_out(text: str, shown: str) -> None:
    assert redacted(text) == shown


@pytest.mark.parametrize("piece", ["://a:", "?token", "&", "://a:b@", "?sig="])
def test_no_text_takes_long_to_look_through(piece: str) -> None:
    begun = time.process_time()
    redacted(piece * (100_000 // len(piece)))
    assert time.process_time() - begun < 5


def test_what_ends_a_process_or_a_thread_is_a_line_too() -> None:
    thread, process = objects(
        "thread = threading.Thread(target=lambda: 1 / 0, name='exporter')\nthread.start(); thread.join()\n{}['key']"
    )
    assert (thread["level"], thread["message"]) == ("CRITICAL", "thread exporter ends unexpectedly")
    assert (process["level"], "KeyError: 'key'" in process["exception"]) == ("CRITICAL", True)


def test_warnings_of_python_are_lines_too() -> None:
    (line,) = objects("import warnings; warnings.warn('old')")
    assert (line["logger"], "old" in line["message"]) == ("py.warnings", True)


def test_libraries_write_no_lines_of_their_own_form() -> None:
    code = (
        "other = logging.getLogger('other'); other.addHandler(logging.StreamHandler()); other.propagate = False\n"
        "logs.configure('json')\nother.warning('hello')"
    )
    assert [line["message"] for line in objects(code)] == ["hello"]


def test_the_level_is_the_least_that_is_logged() -> None:
    code = "for level in (10, 20, 30, 40): log.log(level, '%d', level)"
    assert [line["message"] for line in objects(code, level="warning")] == ["30", "40"]
    assert len(objects(code, level="debug")) == 4


def test_text_shows_the_fields_behind_the_message() -> None:
    (line,) = logged("log.info('λ', extra={'study_id': 's', 'trial_id': None})", log_format="text")
    assert LINE.sub("", line) == "λ study_id=s"
