"""Who asks: every request but those for the open paths has a principal before a route sees it, or is refused here.

A route needs to do nothing for it: what is not listed as open needs a key from the first one on. Only one whose answer
goes on has to ask now and then whether it still may.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Collection
from functools import partial
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.access import OPEN_ACCESS, ApiKey, KeyToken, Principal
from service.api import documentation, problems
from service.api.asking import Question
from service.errors import ForbiddenError, SamstudyError, StoreUnavailableError, UnauthenticatedError
from service.store.keys import KeyStore

PRINCIPAL = "samstudy.principal"
"""The key of an ASGI scope under which the request's Principal is; requests for open paths have none."""

ACCESS = "samstudy.access"
"""The key of an ASGI scope under which the request's Access is, beside its Principal."""

PROBES = ("/healthz", "/readyz")
METRICS = "/metrics"

LAST_USE_S = 60.0
"""How often at most it is written when a key was used last."""

_READING = ("GET", "HEAD")
_SAFE = (*_READING, "OPTIONS")
_KNOWN_S = 1.0
_VALID_S = 0.5  # known for so long to an answer that goes on, and to all of its key's: within a second it ends
_PATIENCE_S = 10.0

_FOREIGN_HOST = (
    "without keys the service answers only where it is asked for by an address or as localhost, so that no web page "
    "can reach it under a name of its own: make a key, or name this one in SAMSTUDY_ALLOWED_HOSTS where a proxy in "
    "front takes care of access"
)
_FOREIGN_PAGE = (
    "without keys the service takes changes from programs and its own pages, and not from a web page of another site: "
    "make a key with `samstudy keys create`, and let a proxy in front pass the Host header on"
)
_REMEDY = "send `Authorization: Bearer <key>`; the client and the command read it from SAMSTUDY_API_KEY"


def allowed_names(listed: str) -> frozenset[str]:
    """The names in a list with commas between, as a Host header's are compared: without a port and a last dot."""
    names = (name.strip().partition(":")[0].rstrip(".").lower() for name in listed.split(","))
    return frozenset(filter(None, names))


def is_own_name(host: str, others: Collection[str] = ()) -> bool:
    """Whether a Host header names this machine: an address, localhost, a name without a dot, or one of the others.

    A web page that has its own domain resolve to 127.0.0.1 (DNS rebinding) is asked for by that domain, dots and all.
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:  # a bracket that nothing closes
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "." not in name or name.endswith(".localhost") or name.rstrip(".") in others
    return True


def is_from_foreign_page(headers: Headers) -> bool:
    """Whether a browser sent the request for a web page of another site; programs send neither of these headers.

    A browser that says how the page's site relates to this one knows best: a proxy may have changed the Host header.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    host = headers.get("host", "").lower().removesuffix(":80")
    return any(origin.lower().partition("://")[2] != host for origin in headers.getlist("origin"))


def open_paths(prefix: str, *, metrics: bool) -> frozenset[str]:
    """The paths that need no key. prefix: under which probes and metrics are once more. metrics: whether they too."""
    both = (*PROBES, *((METRICS,) if metrics else ()))
    return frozenset((*documentation.PATHS, *both, *(prefix + path for path in both)))


class Lock:
    """Whether a key is needed: always, or from the first key on; asked of the store once a second at most.

    A key that was revoked counts: nobody gets in because somebody else's access has ended.
    """

    def __init__(self, keys: KeyStore, *, opens: bool, clock: Callable[[], float] = time.monotonic) -> None:
        """opens: whether everybody may come in before there is a key."""
        self._locked = not opens
        self._question = Question(keys.any_made, good_for_s=_KNOWN_S, patience_s=_PATIENCE_S, clock=clock)

    def is_locked(self) -> bool:
        """Raises StoreUnavailableError."""
        if not self._locked:
            try:
                self._locked = self._question.answer()
            except TimeoutError:
                raise StoreUnavailableError(f"the study store does not answer within {_PATIENCE_S:g} s") from None
        return self._locked


class Access:
    """A caller's access while an answer to it goes on."""

    def __init__(self, lasts: Callable[[], bool], clock: Callable[[], float] = time.monotonic) -> None:
        """lasts: whether the caller would be let in still."""
        self._lasts = lasts
        self._clock = clock
        self._known_until = clock() + _VALID_S

    async def check(self) -> None:
        """Raises UnauthenticatedError once it has ended, StoreUnavailableError; looks twice a second at most."""
        if self._clock() < self._known_until:
            return
        if not await run_in_threadpool(self._lasts):
            raise UnauthenticatedError(f"the access has ended: {_REMEDY}")
        self._known_until = self._clock() + _VALID_S


class KeysInUse:
    """Which keys are valid still: of each the store is asked twice a second at most, however many answers go on."""

    def __init__(self, keys: KeyStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys = keys
        self._clock = clock
        self._valid_until: dict[str, float] = {}

    def is_valid(self, key_id: str) -> bool:
        """Raises StoreUnavailableError."""
        if self._clock() < self._valid_until.get(key_id, float("-inf")):
            return True
        valid = self._keys.is_valid(key_id)
        if valid:
            self._valid_until[key_id] = self._clock() + _VALID_S
        else:
            self._valid_until.pop(key_id, None)
        return valid


class Authentication:
    """ASGI middleware: finds out who asks, and refuses who has no key or may not do this."""

    def __init__(
        self, app: ASGIApp, keys: KeyStore, lock: Lock, open_paths: frozenset[str], *, allowed_hosts: frozenset[str]
    ) -> None:
        """allowed_hosts: names by which requests without a key may ask for this machine beside its own."""
        self._allowed_hosts = allowed_hosts
        self._app = app
        self._keys = keys
        self._lock = lock
        self._open_paths = open_paths
        self._keys_in_use = KeysInUse(keys)
        self._noted_until: dict[str, float] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._open_paths:
            await self._app(scope, receive, send)
            return
        try:
            key = await run_in_threadpool(self._key, Headers(scope=scope), scope["method"])
            principal = OPEN_ACCESS if key is None else key.principal
            _check_role(principal, scope["method"])
        except SamstudyError as error:
            headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, UnauthenticatedError) else {}
            await problems.answer(error, scope, headers)(scope, receive, send)
            return
        scope[PRINCIPAL] = principal
        scope[ACCESS] = Access(partial(self._lasts, key))
        await self._app(scope, receive, send)
        if key is not None and self._is_news(key):
            await run_in_threadpool(self._keys.note_use, key.id)  # the answer is sent: nobody waits for this

    def _key(self, headers: Headers, method: str) -> ApiKey | None:
        """The valid key that was sent, None where none is needed. Raises UnauthenticatedError, ForbiddenError."""
        if not self._lock.is_locked():
            if not is_own_name(headers.get("host", ""), self._allowed_hosts):
                raise ForbiddenError(_FOREIGN_HOST)
            if method not in _SAFE and is_from_foreign_page(headers):
                raise ForbiddenError(_FOREIGN_PAGE)
            return None
        given = headers.getlist("authorization")
        if not given:
            raise UnauthenticatedError(f"the request has no key: {_REMEDY}")
        scheme, _, text = given[0].partition(" ")
        token = KeyToken.parse(text.strip()) if len(given) == 1 and scheme.lower() == "bearer" else None
        key = None if token is None else self._keys.authenticate(token)
        if key is None:
            raise UnauthenticatedError(f"the key is not valid, or not any more: {_REMEDY}")
        return key

    def _lasts(self, key: ApiKey | None) -> bool:
        return not self._lock.is_locked() if key is None else self._keys_in_use.is_valid(key.id)

    def _is_news(self, key: ApiKey) -> bool:
        """Whether its last use is to be written once more."""
        now = time.monotonic()
        if now < self._noted_until.get(key.id, now):
            return False
        self._noted_until[key.id] = now + LAST_USE_S
        return True


def _check_role(principal: Principal, method: str) -> None:
    if not principal.may_change and method not in _READING:
        raise ForbiddenError(f"the key of a {principal.role} reads only, and {method} may change something")
