"""Everything the service reads from its environment, in one place.

Each setting is read from `SAMSTUDY_<NAME>`, Ray's token from Ray's own; `samstudy doctor --settings` prints them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from difflib import get_close_matches
from functools import lru_cache
from ipaddress import ip_network
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

LONGEST_LEASE_S = 600.0
"""The longest lease that a process asks for; one that ends later was given before the store's clock went back."""

URL_PASSWORD = re.compile(r"(://[^:/\s\"]*):[^\s\"]{0,1000}@")
"""A password in a URL, up to the last @: those of AWS and of people have slashes that nobody has escaped.

It has an end, so that no text takes long to look through. A quote ends the URL, which has none in the settings.
"""

URL_TOKEN = re.compile(r"(\bhttps?://)[^\s\":/?#@]{1,1000}@")
"""A user name without a password, which may be a token."""

SECRET_PARAMETER = re.compile(
    r"([?&;][^=?&;\s\"']*(?:password|passwd|pwd|secret|token|credential|auth|signature|\bsig|apikey|[_-]key)=)"
    r"(?:[^&\s\"']|'(?=\w))+",
    re.IGNORECASE,
)
"""A secret among the parameters of a URL, which a quote ends only where it can be the end of the URL."""

HOW_TO_ESCAPE = "a /, ?, # or @ in its user name or password must be written %2F, %3F, %23 or %40"

_UNESCAPED = re.compile(r"[\s\"\\]")
_USER = re.compile(r"^([^/?#]*://)(?:[^/?#]*@|[^/?#:\[]*:(?!\d*(?:[/?#]|$)).*@)")
"""The user name and password of a URL; the second form is of a password with a / that nobody has escaped."""


class Settings(BaseSettings):
    """Where things are and how long the service waits. Times are in seconds."""

    model_config = SettingsConfigDict(
        env_prefix="SAMSTUDY_",
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,  # addresses have passwords
    )

    home: Path = Field(Path.home() / ".samstudy", description="data of the embedded service")
    database_url: str = Field("", description="SQLAlchemy URL of the study store; empty: SQLite in home")
    storage: str = Field("", description="URI under which checkpoints and logs live; empty: a folder of home")
    url: str = Field("", description="where the client and the command find the API; empty: the one in home")
    api_key: SecretStr = Field(
        SecretStr(""), description="the key that the client and the command send, where the API needs one"
    )
    host: str = Field("127.0.0.1", description="address the API binds")
    port: int = Field(8321, ge=0, le=65_535, description="port the API binds")
    allow_open_access: bool = Field(
        False,
        description="bind addresses other than loopback although there are no keys: something in front must check",
    )
    allowed_hosts: str = Field(
        "",
        description="names with a dot by which the API may be asked for while there are no keys, with commas between, "
        "such as that of a proxy in front; empty: none, so that no web page reaches it under a name of its own",
    )
    trusted_proxies: str = Field(
        "",
        description="addresses or networks of proxies in front of the API, with commas between: who asks is whom their "
        "X-Forwarded-For names; empty: nobody's counts",
    )
    requests_per_minute: int = Field(
        6_000, ge=0, description="that each API process answers to one key, or to one address without keys; 0: any"
    )
    max_streams: int = Field(
        20,
        ge=0,
        description="event streams and followed logs that one key, or one address without keys, may have open at each "
        "API process; 0: any number",
    )
    public_url: str = Field("", description="the API's address in webhooks' messages; empty: url, or host and port")
    allow_private_webhooks: bool = Field(
        False, description="send webhooks to loopback and private addresses too, where anybody's studies may reach"
    )
    mlflow_url: str = Field("http://127.0.0.1:5000", description="MLflow's tracking server")
    mlflow_public_url: str = Field(
        "", description="MLflow's address in a browser; empty: mlflow_url. A user name and password in it are not shown"
    )
    ray_jobs_url: str = Field("http://127.0.0.1:8265", description="Ray's dashboard, which serves the Jobs API")

    ray_auth_token: SecretStr = Field(
        SecretStr(""), validation_alias="RAY_AUTH_TOKEN", description="the token of Ray's authentication"
    )

    log_format: LogFormat = Field(
        "text", description="how the service's processes log on stderr: lines for people, or a JSON object a line"
    )
    log_level: LogLevel = Field("info", description="the least that they log")

    lease_s: float = Field(
        10.0, gt=0, le=LONGEST_LEASE_S, description="a driver without a heartbeat for this long is lost"
    )
    heartbeat_s: float = Field(1.0, gt=0, description="time between a driver's heartbeats")
    startup_lease_s: float = Field(
        60.0, gt=0, le=LONGEST_LEASE_S, description="time a new driver has until its first heartbeat"
    )
    poll_s: float = Field(0.25, gt=0, description="time between two looks of the controller at the store")
    max_running_studies: int = Field(
        20, ge=1, description="studies that have a driver at a time (about 0.3 GiB each on the cluster's head)"
    )
    node_grace_s: float = Field(
        600.0,
        ge=0,
        description="time for which a running study of which no node can hold a trial keeps others waiting for its "
        "place; longer than a cluster that grows takes for a new node",
    )
    share_interval_s: float = Field(1.0, gt=0, description="time between two looks at what the running studies may use")
    trial_grace_s: float = Field(
        60.0,
        ge=0,
        description="time that a worker has beyond budget.max_trial_s to end its trial itself before it is killed",
    )
    cancel_grace_s: float = Field(5.0, gt=0, description="time a cancelled driver has before its job is stopped")
    export_interval_s: float = Field(2.0, gt=0, description="least time between two exports of a running trial")

    @field_validator("database_url", "url", "public_url", "mlflow_url", "mlflow_public_url", "ray_jobs_url")
    @classmethod
    def _refuse_blanks(cls, url: str) -> str:
        """Where its password ends could not be told in a text, so that a part of it might be shown."""
        url = url.strip()
        place, _, parameters = url.partition("?")
        has_secret = SECRET_PARAMETER.search(url) is not None
        if not url.startswith("sqlite") and _UNESCAPED.search(place + parameters * has_secret):
            raise PydanticCustomError(
                "escaped",
                'must have no blank, " or \\: in a URL, and in its password, they are written %20, %22 and %5C',
            )
        return url

    @field_validator("storage")
    @classmethod
    def _refuse_credentials(cls, storage: str) -> str:
        """The URI is shown where files cannot be reached, and handed to every driver and worker."""
        is_file = storage.startswith("file:")
        if not is_file and (URL_PASSWORD.search(storage) or SECRET_PARAMETER.search(storage)):
            raise PydanticCustomError(
                "credentials",
                "must not contain credentials: put them into the environment of every process (AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or what else the storage goes by) or into its own configuration "
                "(~/.aws/credentials); an @ in a path is written %40",
            )
        return storage

    @field_validator("heartbeat_s", "poll_s")
    @classmethod
    def _refuse_rare(cls, rhythm_s: float, info: ValidationInfo) -> float:
        """Else a lease may run out between two of them."""
        lease_s = info.data.get("lease_s", math.inf)
        if rhythm_s > lease_s / 2:
            raise PydanticCustomError(
                "too_rare", "must be at most half of SAMSTUDY_LEASE_S, which is {lease_s}", {"lease_s": f"{lease_s:g}"}
            )
        return rhythm_s

    @field_validator("trusted_proxies")
    @classmethod
    def _refuse_names(cls, trusted_proxies: str) -> str:
        for proxy in trusted_proxies.split(",") if trusted_proxies else ():
            try:
                ip_network(proxy.strip())
            except ValueError:
                message = "must be addresses or networks, such as 192.0.2.1 or 192.0.2.0/24, with commas between"
                raise ValueError(f"{message}, got {proxy.strip()!r}") from None
        return trusted_proxies

    def to_environment(self) -> dict[str, str]:
        """The settings as the environment of a process of the service that shall have the same.

        Ray's token is Ray's own variable, and the client's key is left out: the service does not need it.
        """
        ours = [name for name, field in type(self).model_fields.items() if field.annotation is not SecretStr]
        return {f"SAMSTUDY_{name.upper()}": str(getattr(self, name)) for name in ours}

    @property
    def store_url(self) -> str:
        """SQLAlchemy URL of the study store."""
        return self.database_url or f"sqlite:///{self.home / 'samstudy.db'}"

    @property
    def storage_uri(self) -> str:
        """URI under which every study's checkpoints and logs live."""
        return self.storage or (self.home / "storage").as_uri()

    @property
    def own_url(self) -> str:
        """Where the API listens on this machine."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def api_url(self) -> str:
        """The API's address as receivers of webhooks are told it."""
        return without_user(self.public_url or self.url or self.own_url).rstrip("/")

    @property
    def browser_mlflow_url(self) -> str:
        """MLflow's address as a person's browser reaches it; everybody who may read a study is shown it."""
        return without_user(self.mlflow_public_url or self.mlflow_url)


_READ_ELSEWHERE = frozenset({"SAMSTUDY_DATA_DIR"})
"""Read by the trainers."""


def unknown_variables(environment: Mapping[str, str]) -> dict[str, str | None]:
    """Variables that look like ours and that nobody reads, and for each the one that may have been meant."""
    fields = Settings.model_fields.items()
    known = {str(field.validation_alias or f"SAMSTUDY_{name.upper()}") for name, field in fields} | _READ_ELSEWHERE
    ours = (name for name in environment if name.upper().startswith("SAMSTUDY_") and name.upper() not in known)
    unread = (name for name in ours if not name.upper().startswith(("SAMSTUDY_FAULTS_", "SAMSTUDY_TEST_")))
    return {name: next(iter(get_close_matches(name.upper(), known, 1)), None) for name in unread}


def without_user(url: str) -> str:
    """The URL as others may see it: without its user name and password."""
    return _USER.sub(r"\1", url)


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process, read once."""
    return Settings()
