"""The local server behind the page of ``foveate label``.

It shows private pictures and takes labels, so it lets nobody in but the person who started it:

- it listens on 127.0.0.1 only, at an address whose first part is a random token of 128 bits;
- the Host header must be that address (no other name can be made to point here: DNS rebinding),
  and a request that changes something must come from the page itself (Origin), as JSON;
- a picture is asked for by its row in the pool, never by a path, and is decoded and encoded again
  here: no byte of a file from the pool reaches the browser;
- the page reads from its own address only (Content-Security-Policy), and nothing is cached.

A label is on the disk before anything else is computed (`LabelSession.tell`); the same address
cannot label an item that is not being asked about, so that a key pressed twice does nothing.
"""

from __future__ import annotations

import io
import os
import secrets
import socket
import sys
import threading
import webbrowser
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException as PlainHTTPException

import foveate
from foveate.apps.label_store import SessionChangedError
from foveate.errors import FoveateError
from foveate.report.label import label_page, page_state

if TYPE_CHECKING:
    from foveate.apps.label import Labelling

__all__ = ["make_app", "serve"]

LARGE, SMALL = 1600, 160  # pixels on the longer side of a picture
MAX_BODY = 1 << 14  # bytes

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _StaleError(FoveateError):
    """An answer for an item that is not being asked about any more."""


class _Item(_Strict):
    id: str = Field(min_length=1, max_length=500)


class _Answer(_Item):
    label: str = Field(min_length=1, max_length=500)  # as long as in a table of labels


class _Class(_Strict):
    name: str = Field(min_length=1, max_length=200)


class _Budget(_Strict):
    budget: int = Field(ge=1, le=10_000_000)


class _Guard:
    """Turns away whatever does not come from the page, before anything looks at it."""

    def __init__(self, app: Any, token: str, hosts: frozenset[str]) -> None:
        self.app, self.token, self.hosts = app, token, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return

        async def with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        await (self.refusal(scope) or self.app)(scope, receive, with_headers)

    def refusal(self, scope: Scope) -> Response | None:
        """Why a request is turned away; None when it is not."""
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        host = headers.get("host", [])
        if len(host) != 1 or host[0].lower() not in self.hosts:
            return _refused(421, "this server answers under its own address only")
        first = str(scope["path"]).removeprefix("/").split("/")[0]
        if not secrets.compare_digest(first.encode(), self.token.encode()):
            return _refused(404, "there is nothing here; use the address that the command printed")
        if scope["method"] in ("GET", "HEAD"):
            return None
        if scope["method"] != "POST":
            return _refused(405, "GET or POST")
        if headers.get("origin") != [f"http://{host[0]}"]:
            return _refused(403, "only the page itself may change something")
        if headers.get("content-type", [""])[0].split(";")[0].strip() != "application/json":
            return _refused(415, "expected JSON")
        length = headers.get("content-length", [])
        if len(length) != 1 or not length[0].isdecimal():
            return _refused(411, "expected a length")
        if len(length[0]) > 9 or int(length[0]) > MAX_BODY:
            return _refused(413, "too much")
        return None


_HEADERS = [
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


def _refused(status: int, why: str) -> Response:
    return JSONResponse({"state": None, "message": why}, status)


def make_app(
    labelling: Labelling, token: str, port: int, stop: Callable[[], None] = lambda: None
) -> Any:
    """The ASGI application of one session.

    Parameters
    ----------
    token
        First part of every path.
    port
        The port it is reached at; part of the Host and Origin that are let in.
    stop
        Called when the person has finished.
    """
    session, pool, lock = labelling.session, labelling.pool, threading.Lock()
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    def state() -> dict[str, Any]:
        try:
            session.ask()
        except SessionChangedError:
            session.ask()  # it was read anew
        return page_state(labelling.snapshot())

    def done(action: Callable[[], object]) -> JSONResponse:
        """Do what a person asked for; then, apart from that, find the next item."""
        with lock:
            status, message = 200, ""
            try:
                action()
            except SessionChangedError:
                status, message = 409, "Another process has changed the session; it was read anew."
            except FoveateError as error:
                status = 409 if isinstance(error, _StaleError) else 400
                message = str(error)
            try:
                return JSONResponse({"state": state(), "message": message}, status)
            except FoveateError as error:
                # The answer itself is safe; the page keeps what it shows.
                return JSONResponse({"state": None, "message": message or str(error)}, 500)

    def current(name: str) -> None:
        if not any(item.id == name for item in session.current):
            raise _StaleError(f"{name} is not being asked about any more.")

    @app.get(f"/{token}/")
    def page() -> HTMLResponse:
        with lock:
            html, policy = label_page(state(), foveate.__version__)
        return HTMLResponse(html, headers={"content-security-policy": policy})

    @app.get(f"/{token}/api/state")
    def now() -> JSONResponse:
        return done(session.reload)

    @app.post(f"/{token}/api/label")
    def answer(given: _Answer) -> JSONResponse:
        def tell() -> None:
            current(given.id)
            session.tell({given.id: given.label}, by="page")

        return done(tell)

    @app.post(f"/{token}/api/correct")
    def correct(given: _Answer) -> JSONResponse:
        def tell() -> None:
            if given.id not in session.labels:
                raise FoveateError(f"{given.id} has no label yet that could be corrected")
            session.tell({given.id: given.label}, by="page")

        return done(tell)

    @app.post(f"/{token}/api/skip")
    def skip(given: _Item) -> JSONResponse:
        def leave() -> None:
            current(given.id)
            session.skip(given.id)

        return done(leave)

    @app.post(f"/{token}/api/undo")
    def undo(given: _Strict) -> JSONResponse:
        return done(session.undo)

    @app.post(f"/{token}/api/class")
    def add_class(given: _Class) -> JSONResponse:
        def add() -> None:
            word = given.name.strip()
            if not word or not word.isprintable():
                raise FoveateError("a class needs a name that can be printed")
            session.add_classes([word])

        return done(add)

    @app.post(f"/{token}/api/budget")
    def budget(given: _Budget) -> JSONResponse:
        return done(lambda: session.set_budget(given.budget))

    @app.post(f"/{token}/api/finish")
    def finish(given: _Strict) -> JSONResponse:
        stop()
        return JSONResponse({"state": None, "message": f"{len(session.labels)} labels are saved."})

    @app.get(f"/{token}/picture/{{row}}")
    def picture(row: int, small: int = 0) -> Response:
        if not 0 <= row < len(pool) or not pool.has_pictures:
            raise HTTPException(404, "there is no such picture")
        try:
            pixels = pool.picture(row, SMALL if small else LARGE)
        except FoveateError as error:
            raise HTTPException(404, "the picture cannot be read") from error
        image, content = Image.fromarray(pixels), io.BytesIO()  # type: ignore[arg-type]
        # Small pictures exactly; photographs in a size that a browser likes.
        exact = max(image.size) <= 512 and not small
        image.save(content, "PNG") if exact else image.save(content, "JPEG", quality=90)
        return Response(content.getvalue(), media_type="image/png" if exact else "image/jpeg")

    @app.get(f"/{token}/labels.csv")
    def export() -> Response:
        with lock:
            table = labelling.table()
        headers = {"content-disposition": 'attachment; filename="labels.csv"'}
        return Response(table, media_type="text/csv; charset=utf-8", headers=headers)

    @app.exception_handler(RequestValidationError)
    def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"state": None, "message": "that request is not understood"}, 422)

    @app.exception_handler(PlainHTTPException)
    def plain(request: Request, error: PlainHTTPException) -> JSONResponse:
        return JSONResponse({"state": None, "message": str(error.detail)}, error.status_code)

    @app.exception_handler(FoveateError)
    def failed(request: Request, error: FoveateError) -> JSONResponse:
        return JSONResponse({"state": None, "message": str(error)}, 500)

    hosts = frozenset({f"127.0.0.1:{port}", f"localhost:{port}"})
    return _Guard(app, token, hosts)


def serve(labelling: Labelling, port: int, browser: bool, say: Callable[[str], None]) -> None:
    """Serve the page until the person has finished, or stops the command.

    Parameters
    ----------
    port
        0 takes a free one.
    browser
        Whether a browser is opened.
    say
        Told the address.

    Raises
    ------
    FoveateError
        The port is taken.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise FoveateError(f"cannot listen on port {port} ({error}); leave --port out") from error
    port, token = listening.getsockname()[1], secrets.token_urlsafe(16)

    def stop() -> None:
        server.should_exit = True

    server = uvicorn.Server(
        uvicorn.Config(
            make_app(labelling, token, port, stop),
            log_level="error",
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=2,
        )
    )
    address = f"http://127.0.0.1:{port}/{token}/"
    say(f"label at {address}")
    say("(the address is for you alone; Ctrl-C stops, and every answer is saved as it is given)")
    # Without a display, the browser would be one in this terminal.
    display = sys.platform != "linux" or {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ)
    if browser and display:
        threading.Timer(0.5, webbrowser.open, [address]).start()
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:
        pass  # the way to stop it
    finally:
        listening.close()
