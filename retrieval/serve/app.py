"""Serve searches of one store over HTTP: JSON in, JSON out.

    POST   /search               words, a picture (base64, or a file of a form), both, or a product → products
    POST   /embed                words, a picture, or both → their vector
    POST   /region               a picture → the box of the product in it, for /search and /embed
    PUT    /products             add or replace products (needs the key)
    DELETE /products             remove products (needs the key)
    GET    /products/{id}        one product; its "images" are URLs, or paths of this service
    POST   /explain              a product and a search's query → which attribute values carry their similarity
    GET    /                     the page; GET /pictures/{number}/{id}: a product's picture
    GET    /facets               numbers of products by category, brand and availability
    GET    /health, /metrics, /openapi.json

The service opens no file and fetches no URL that a client names.
"""

from __future__ import annotations

import contextlib
import hmac
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from processing_moon import ProductError
from processing_moon.cropping_moon import LargestRegionDetector
from product_data.errors import OptionError
from retrieval.explanation.phrases import ExplanationError
from retrieval.queries import Query, SearchError
from retrieval.search import Searcher, product_as_dict
from retrieval.serve.batching import BusyError, MicroBatcher
from retrieval.serve.explaining import MatchAnswers
from retrieval.serve.logs import log_request, request_logger
from retrieval.serve.metrics import CONTENT_TYPE, SECONDS, SIZES, Metrics
from retrieval.serve.openapi import document
from retrieval.serve.page import read_page
from retrieval.serve.pictures import ProductPictures, public_images
from retrieval.serve.pixel_budget import PixelBudget
from retrieval.serve.products import ProductWriter
from retrieval.serve.recent import RecentQueries
from retrieval.serve.settings import ServiceSettings
from retrieval.serve.uploads import (
    OPTION_FIELDS,
    QUERY_FIELDS,
    UploadError,
    check_fields,
    decoded_picture,
    options_of,
    query_of,
    read_body,
    read_fields,
    read_json,
)
from retrieval.stores.interface import StoreBusyError, StoreError
from retrieval.stores.where import Where

EMBED_FIELDS = ("text", "image", "box", "weight")
_REFUSALS = (SearchError, StoreError, ProductError, OptionError, ExplanationError)
_READERS = 4
"""Requests whose bodies may arrive at once, as a multiple of those that may be in work."""
_Answer = TypeVar("_Answer")
Handler = Callable[[Request], Awaitable[Response]]


def create_app(
    searcher: Searcher, settings: ServiceSettings | None = None, answers: MatchAnswers | None = None
) -> Starlette:
    """Return the ASGI application that serves a store.

    Args:
        searcher: the store and its model; the application does not close the store.
        settings: limits and keys. Default: `ServiceSettings()`.
        answers: explains matches. Default: without heat maps, and the phrases' vectors are kept in memory.
    """
    service = Service(searcher, settings or ServiceSettings(), answers or MatchAnswers(searcher))
    origins = list(service.settings.origins)
    cors = Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["Content-Type"],
        max_age=600,
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        service.close()

    return Starlette(routes=service.routes(), middleware=[cors] if origins else [], lifespan=lifespan)


class Service:
    """The endpoints of the service, and what they share: batches, metrics, the writer, and the number of requests in work.

    Args:
        searcher: the store and its model.
        settings: limits and keys.
        answers: explains matches.
    """

    def __init__(self, searcher: Searcher, settings: ServiceSettings, answers: MatchAnswers) -> None:
        self.settings, self.metrics, self.logger = settings, make_metrics(), request_logger()
        self.batcher = MicroBatcher(
            searcher.encoder.encode_queries,
            batch_size=settings.batch_size,
            milliseconds=settings.batch_milliseconds,
            queue_size=settings.max_requests,
            seconds=settings.seconds,
            observe=lambda size: self.metrics.observe("moon_batch_queries", size),
        )
        self.recent = RecentQueries(self.batcher, settings.recent_queries, self._note_recent)
        self.searcher = Searcher(searcher.store, searcher.encoder, encode=self.recent)
        self.pixels = PixelBudget(settings.pixels_in_work)
        self.writer = ProductWriter(searcher.store, searcher.encoder, settings, self.pixels)
        self.pictures, self.answers = ProductPictures(searcher.store, settings, self.pixels), answers
        self.page_text, self.page_headers = read_page()
        self.regions = LargestRegionDetector()
        self._threads = anyio.CapacityLimiter(settings.max_requests)
        self._in_work = self._in_reading = 0  # changed by the event loop only

    def close(self) -> None:
        """Answer the queries that wait, and end the thread that encodes."""
        self.batcher.close()

    def routes(self) -> list[Route]:
        """Return the routes of the service."""
        working: list[tuple[str, str, Handler]] = [
            ("POST", "/search", self.search),
            ("POST", "/embed", self.embed),
            ("POST", "/region", self.region),
            ("POST", "/explain", self.explain),
            ("PUT", "/products", self.upsert),
            ("DELETE", "/products", self.delete),
            ("GET", "/products/{product_id:path}", self.product),
            ("GET", "/pictures/{number:int}/{product_id:path}", self.picture),
            ("GET", "/", self.page),
            ("GET", "/facets", self.facets),
        ]
        free: list[tuple[str, Handler]] = [
            ("/health", self.health),
            ("/metrics", self.metrics_text),
            ("/openapi.json", self.openapi),
        ]
        routes = [Route(path, self._observed(path, work), methods=[kind]) for kind, path, work in working]
        return routes + [Route(path, self._observed(path, work), methods=["GET"]) for path, work in free]

    async def search(self, request: Request) -> Response:
        """Answer a search."""
        fields = check_fields(await self._fields(request), (*QUERY_FIELDS, *OPTION_FIELDS))
        if self.settings.log_queries:
            request.state.query = fields.get("text")

        def work() -> dict[str, Any]:
            options = options_of(fields, self.settings)
            with self._query(fields) as query:
                answer = self.searcher.search(query, options).as_dict()
            for hit in answer["hits"]:
                hit["images"] = public_images(hit["product_id"], hit["images"])
            return answer | {"store": type(self.searcher.store).__name__}

        return JSONResponse(await self._in_thread(work))

    async def embed(self, request: Request) -> Response:
        """Answer with the vector of a query."""
        fields = check_fields(await self._fields(request), EMBED_FIELDS)

        def work() -> dict[str, Any]:
            with self._query(fields) as query:
                vectors_VD = self.searcher.vectors(query)
            return {
                "query_form": query.form,
                "fingerprint": self.searcher.store.fingerprint,
                "dimension": self.searcher.store.dimension,
                "vectors": vectors_VD.tolist(),
            }

        return JSONResponse(await self._in_thread(work))

    async def region(self, request: Request) -> Response:
        """Answer with the box of the largest region of a picture that differs from its background; null if there is none."""
        fields = check_fields(await self._fields(request), ("image",))
        if "image" not in fields:
            raise UploadError("image: found none; expected a picture")

        def work() -> list[float] | None:
            with self.pixels.share() as share:
                picture = decoded_picture(fields["image"], "image", self.settings, share.take)
                (box,) = self.regions.detect([picture], [None])
                return None if box is None else list(box)

        return JSONResponse({"box": await self._in_thread(work)})

    async def explain(self, request: Request) -> Response:
        """Answer why a product matches a query."""
        fields = check_fields(await self._fields(request), ("product", *QUERY_FIELDS))
        product_id = fields.pop("product", None)
        if product_id is None:
            raise UploadError("product: found none; expected the id of the product that was found")

        def work() -> Mapping[str, Any]:
            with self._query(fields) as query:
                return self.answers.answer(query, product_id)

        return JSONResponse(await self._in_thread(work))

    async def picture(self, request: Request) -> Response:
        """Answer with a product's picture, as a small JPEG."""
        product_id, number = request.path_params["product_id"], request.path_params["number"]
        data = await self._in_thread(lambda: self.pictures.jpeg(product_id, number))
        headers = {"Cache-Control": "max-age=3600", "X-Content-Type-Options": "nosniff"}
        return Response(data, media_type="image/jpeg", headers=headers)

    async def page(self, _: Request) -> Response:
        """Answer with the page."""
        return HTMLResponse(self.page_text, headers=self.page_headers)

    async def upsert(self, request: Request) -> Response:
        """Add or replace products."""
        fields = await self._keyed_fields(request)
        written = await self._in_thread(lambda: self.writer.upsert(fields))
        return JSONResponse({"written": written}, background=BackgroundTask(self.writer.tidy))

    async def delete(self, request: Request) -> Response:
        """Remove products."""
        fields = await self._keyed_fields(request)
        removed = await self._in_thread(lambda: self.writer.delete(fields))
        return JSONResponse({"removed": removed}, background=BackgroundTask(self.writer.tidy))

    async def product(self, request: Request) -> Response:
        """Answer with a product."""
        product_id = request.path_params["product_id"]
        found = await self._in_thread(lambda: self.searcher.store.get([product_id])[0])
        if found is None:
            raise UploadError(f"product {product_id!r}: not in the store", 404)
        return JSONResponse(product_as_dict(found) | {"images": public_images(product_id, found.images)})

    async def facets(self, request: Request) -> Response:
        """Answer with the numbers of products by category, brand and availability."""
        text = request.query_params.get("where")
        where = None if text is None else Where.parse(text)
        return JSONResponse(await self._in_thread(lambda: self.searcher.store.facets(where)))

    async def health(self, _: Request) -> Response:
        """Answer with the number of products, and the fingerprint of the model."""
        store = self.searcher.store
        count = await anyio.to_thread.run_sync(store.count)
        return JSONResponse({"status": "ok", "products": count, "fingerprint": store.fingerprint})

    async def metrics_text(self, _: Request) -> Response:
        """Answer with the metrics in Prometheus' format."""
        self.metrics.put("moon_requests_in_work", self._in_work)
        return PlainTextResponse(self.metrics.text(), media_type=CONTENT_TYPE)

    async def openapi(self, _: Request) -> Response:
        """Answer with the description of the service."""
        return JSONResponse(document(self.settings))

    async def _keyed_fields(self, request: Request) -> Mapping[str, Any]:
        """Return the JSON object of a request that has the key."""
        if self.settings.api_key is None:
            raise UploadError("products cannot be changed: the service has no key", 403)
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(key.encode(), self.settings.api_key.encode()):
            raise UploadError("authorization: expected Bearer and the service's key", 401)
        with self._reading():
            return read_json(await read_body(request, self.settings))

    async def _fields(self, request: Request) -> dict[str, Any]:
        """Return the fields of a JSON object or form."""
        with self._reading():
            return await read_fields(request, self.settings)

    @contextlib.contextmanager
    def _query(self, fields: Mapping[str, Any]) -> Iterator[Query]:
        """Yield the query of a request, whose picture takes its share of the memory as long as it is searched."""
        with self.pixels.share() as share:
            yield query_of(fields, self.settings, share.take)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Refuse a request if the bodies of too many others arrive; one that arrives slowly takes no place of work."""
        if self._in_reading >= _READERS * self.settings.max_requests:
            raise BusyError(f"{self._in_reading} requests are arriving")
        self._in_reading += 1
        try:
            yield
        finally:
            self._in_reading -= 1

    async def _in_thread(self, work: Callable[[], _Answer]) -> _Answer:
        """Run blocking work in a thread, unless too many are in work.

        If the request is late, the thread goes on, and its answer is dropped. An error lets go of what its frames hold, such
        as a picture: anyio and its traceback refer to each other, so it would stay in memory.
        """

        def released() -> _Answer:
            try:
                return work()
            except Exception as error:
                reason: BaseException | None = error
                while reason is not None:
                    traceback.clear_frames(reason.__traceback__)
                    reason = reason.__cause__ or reason.__context__
                raise

        if self._in_work >= self.settings.max_requests:
            raise BusyError(f"{self._in_work} requests are in work")
        self._in_work += 1
        try:
            with anyio.fail_after(self.settings.seconds):
                return await anyio.to_thread.run_sync(released, abandon_on_cancel=True, limiter=self._threads)
        finally:
            self._in_work -= 1

    def _note_recent(self, kept: bool) -> None:
        self.metrics.count("moon_word_queries_total", recent=str(kept).lower())

    def _observed(self, path: str, handler: Handler) -> Handler:
        """Return a handler that answers errors, measures, and logs."""

        async def observed(request: Request) -> Response:
            start = time.perf_counter()
            status = 500
            try:
                response = await _answered(handler, request)
                status = response.status_code
                return response
            finally:
                self._note(request, path, status, time.perf_counter() - start)

        return observed

    def _note(self, request: Request, path: str, status: int, seconds: float) -> None:
        labels = {"method": request.method, "path": path}
        self.metrics.count("moon_requests_total", **labels, status=str(status))
        self.metrics.observe("moon_request_seconds", seconds, **labels)
        query = getattr(request.state, "query", None)
        log_request(self.logger, **labels, status=status, milliseconds=round(1000 * seconds, 1), query=query)


async def _answered(handler: Handler, request: Request) -> Response:
    """Return the answer of a handler, or that of its error."""
    try:
        return await handler(request)
    except UploadError as error:
        ends = error.status in (408, 413)  # the rest of the body is not read
        return _error(error.status, str(error), {"Connection": "close"} if ends else None)
    except StoreBusyError as error:
        return _error(503, f"{error}; try again", {"Retry-After": "1"})
    except _REFUSALS as error:
        return _error(400, str(error))
    except BusyError as error:
        return _error(429, f"{error}; try again", {"Retry-After": "1"})
    except TimeoutError:
        return _error(504, "the request took too long")
    except HTTPException as error:
        return _error(error.status_code, str(error.detail))


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": message}, status, headers)


def make_metrics() -> Metrics:
    """Return the metrics of the service, all at zero."""
    metrics = Metrics()
    metrics.counter("moon_requests_total", "Requests that were answered.")
    metrics.counter("moon_word_queries_total", "Queries of words, by whether their vector was kept from a recent one.")
    metrics.gauge("moon_requests_in_work", "Requests in work.")
    metrics.histogram("moon_request_seconds", "Time from the request to its answer.", SECONDS)
    metrics.histogram("moon_batch_queries", "Queries in a batch of the model.", SIZES)
    return metrics
