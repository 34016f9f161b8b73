"""The pages about the API, Swagger UI and ReDoc: all that they need comes from this service, none of it from a CDN."""

from __future__ import annotations

from importlib.resources import files

from fastapi import FastAPI
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles

_SWAGGER, _REDOC, _ASSETS = "/docs", "/redoc", "/docs/assets"
_SCRIPT, _STYLE, _REDOC_SCRIPT, _ICON = (
    f"{_ASSETS}/{name}" for name in ("swagger-ui-bundle.js", "swagger-ui.css", "redoc.standalone.js", "favicon.png")
)
_OPENAPI = "/openapi.json"

_NOTHING_FROM_ELSEWHERE = (
    "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline'; "
    "worker-src blob:"
)
"""Both pages have a script and styles of their own in them; ReDoc searches in a worker."""

PATHS = ("/", _SWAGGER, _REDOC, _OPENAPI, _SCRIPT, _STYLE, _REDOC_SCRIPT, _ICON)
"""Every path of the documentation."""


def install(app: FastAPI) -> None:
    """Adds the pages to an application that has none of FastAPI's own, and leads its root to them."""
    for path, answer in (("/", _to_swagger), (_SWAGGER, _swagger), (_REDOC, _redoc)):
        app.add_api_route(path, answer, include_in_schema=False)
    app.mount(_ASSETS, StaticFiles(directory=str(files("fastapi_offline") / "static")))


def _to_swagger() -> RedirectResponse:
    return RedirectResponse(_SWAGGER)


def _swagger() -> HTMLResponse:
    return _self_contained(
        get_swagger_ui_html(
            openapi_url=_OPENAPI,
            title="samstudy",
            swagger_js_url=_SCRIPT,
            swagger_css_url=_STYLE,
            swagger_favicon_url=_ICON,
        )
    )


def _redoc() -> HTMLResponse:
    return _self_contained(
        get_redoc_html(
            openapi_url=_OPENAPI,
            title="samstudy",
            redoc_js_url=_REDOC_SCRIPT,
            redoc_favicon_url=_ICON,
            with_google_fonts=False,
        )
    )


def _self_contained(page: HTMLResponse) -> HTMLResponse:
    """The page, of which the browser asks nobody else anything, as ReDoc does for a logo."""
    page.headers["Content-Security-Policy"] = _NOTHING_FROM_ELSEWHERE
    return page
