"""What the server answers at which address."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, Response

from metric_learning import __version__
from metric_learning.common.pages import templates_of
from metric_learning.engine.search.page import TEMPLATES as SHARED_TEMPLATES
from metric_learning.engine.serve.decoder import Decoders
from metric_learning.engine.serve.guard import Guard
from metric_learning.engine.serve.searcher import Searcher
from metric_learning.reader import ImageError

TEMPLATES = Path(__file__).with_name("templates")
MOST_NEIGHBOURS, LONGEST_TEXT = 100, 500
THUMBNAILS_AT_ONCE = 2
BODIES_AT_ONCE = 16  # times the largest upload: bytes of bodies that are held at once
IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "description": "The bytes of an image file.",
        "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
    }
}

NumNeighbours = Annotated[int, Query(ge=1, le=MOST_NEIGHBOURS, description="neighbours")]
ClassName = Annotated[str | None, Query(max_length=1000, description="search this class alone")]
Words = Annotated[str, Query(min_length=1, max_length=LONGEST_TEXT, description="what is searched")]


class Limits(NamedTuple):
    """What one upload may be, and how many searches run at once; others wait."""

    num_bytes: int
    searches: int


def build_app(searcher: Searcher, decode: Decoders, limits: Limits, token: str | None) -> Guard:
    """Return the app of a search page and its JSON endpoint, which who has no token cannot enter.

    What is answered: see docs/search.md, and /openapi.json of the running server.
    """
    app = FastAPI(title="Image search", version=__version__, docs_url=None, redoc_url=None)
    searches, thumbnails = asyncio.Semaphore(limits.searches), asyncio.Semaphore(THUMBNAILS_AT_ONCE)
    bodies = Bodies(limits.num_bytes)
    add_page(app, searcher, limits)

    @app.post("/api/search", openapi_extra=IMAGE_BODY)
    async def search_by_image(
        request: Request, k: NumNeighbours = 12, class_name: ClassName = None
    ) -> dict[str, Any]:
        """Find the images nearest to the image in the body."""
        data = await bodies.read(request)
        try:

            def search() -> dict[str, Any]:
                return searcher.search_image(decode(data), k, class_name)

            return await in_turn(searches, request, search)
        finally:
            bodies.drop(len(data))

    @app.get("/api/search")
    async def search_by_words(
        request: Request, text: Words, k: NumNeighbours = 12, class_name: ClassName = None
    ) -> dict[str, Any]:
        """Find the images nearest to words, where the index is of a CLIP model."""
        search = lambda: searcher.search_words(text, k, class_name)  # noqa: E731
        return await in_turn(searches, request, search)

    @app.get("/api/images/{version}/{row}", response_class=Response)
    async def thumbnail(
        request: Request, version: int, row: int, size: Literal["small", "large"] = "small"
    ) -> Response:
        """Return a small JPEG of an image that an answer named."""
        picture = lambda: searcher.thumbnail(version, row, size)  # noqa: E731
        data = await in_turn(thumbnails, request, picture)
        headers = {"cache-control": "private, max-age=3600"}  # its address is of this version
        return Response(data, media_type="image/jpeg", headers=headers)

    return Guard(app, token)


def add_page(app: FastAPI, searcher: Searcher, limits: Limits) -> None:
    """Let an app answer the page, what it loads, and what is served."""
    templates = templates_of(TEMPLATES, SHARED_TEMPLATES)
    page = templates.get_template("search.html").render(most_mb=limits.num_bytes / 10**6)
    style = templates.get_template("search.css").render()
    script = templates.get_template("search.js").render()

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def index() -> str:
        return page

    @app.get("/search.css", include_in_schema=False)
    async def css() -> Response:
        return Response(style, media_type="text/css")

    @app.get("/search.js", include_in_schema=False)
    async def js() -> Response:
        return Response(script, media_type="text/javascript")

    @app.get("/api/about")
    async def about() -> dict[str, Any]:
        """Say what is served: how many images, which classes, and whether words can be searched."""
        found = await asyncio.to_thread(searcher.about)
        return {**found, "largest_upload": limits.num_bytes, "most_neighbours": MOST_NEIGHBOURS}


async def in_turn(turns: asyncio.Semaphore, request: Request, work: Callable[[], Any]) -> Any:
    """Do work in a thread when it is its turn, unless nobody waits for it any more.

    What is wrong with a request is an answer of status 400, or 404 where something is not there.
    """
    async with turns:
        if await request.is_disconnected():
            raise HTTPException(499, "nobody waits for the answer")
        try:
            return await asyncio.to_thread(work)
        except LookupError as error:
            raise HTTPException(404, str(error)) from error
        except ImageError as error:
            if request.method == "GET":  # the message names a path of this machine
                raise HTTPException(404, "this image cannot be read") from error
            raise HTTPException(400, str(error)) from error
        except ValueError as error:
            raise HTTPException(400, str(error)) from error


class Bodies:
    """The bodies of requests, each held to a number of bytes, and together to BODIES_AT_ONCE."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes, self._held = num_bytes, 0

    async def read(self, request: Request) -> bytes:
        """Read a body, which counts until it is dropped; HTTPException where it is too large."""
        announced = request.headers.get("content-length", "0")
        parts, size = [], 0
        try:
            if announced.isdigit() and int(announced[:20]) > self.num_bytes:
                raise self._too_large()
            async for part in request.stream():
                size += len(part)
                self._held += len(part)
                if size > self.num_bytes:
                    raise self._too_large()
                if self._held > BODIES_AT_ONCE * self.num_bytes:
                    raise HTTPException(503, "too many uploads at once: try again")
                parts.append(part)
        except BaseException:  # also where who sends it is gone
            self.drop(size)
            raise

        if not size:
            raise HTTPException(400, "expected the bytes of an image file, found none")
        return b"".join(parts)

    def drop(self, num_bytes: int) -> None:
        """Count so many bytes no longer."""
        self._held -= num_bytes

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"an image may have {self.num_bytes:,} bytes")
