"""The endpoints."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.routing import Match

from .. import __version__
from ..errors import RunError, UnmaskError
from ..tasks.fill import FillOptions
from . import schema
from .docs import page as docs_page
from .guard import Guard, dumps
from .limits import Limits, Refused
from .metrics import Metrics
from .models import Models
from .scores import few_characters, read_score
from .tasks import TASKS, Work, each, inputs_of

KIND = re.compile(r"str|int|Asked|list\[.*\]|constrained-.*")
B = TypeVar("B", bound=BaseModel)

log = logging.getLogger(__name__)

ERRORS: dict[int | str, dict[str, Any]] = {
    401: {"model": schema.ErrorBody, "description": "The key is missing or wrong."},
    404: {"model": schema.ErrorBody, "description": "There is no such model."},
    408: {"model": schema.ErrorBody, "description": "The request did not arrive in time."},
    413: {"model": schema.ErrorBody, "description": "More than the service takes on in one request."},
    415: {"model": schema.ErrorBody, "description": "Not JSON."},
    422: {"model": schema.ErrorBody, "description": "What was sent cannot be answered, and why."},
    429: {"model": schema.ErrorBody, "description": "Too many requests at a time; Retry-After says when to come back."},
    503: {"model": schema.ErrorBody, "description": "No answer in time, or no model; Retry-After says when to come back."},
}
OPEN_ERRORS: dict[int | str, dict[str, Any]] = {401: ERRORS[401]}


class Direct(APIRoute):
    """A route that FastAPI describes and does not run: it would read bodies and check answers a second time, for a third of a request."""

    def __init__(self, path: str, endpoint: Callable[..., Awaitable[Response]], **options: Any) -> None:
        super().__init__(path, endpoint, **options)

        async def call(scope: Any, receive: Any, send: Any) -> None:
            answer = await endpoint(request=Request(scope, receive), **scope["path_params"])
            await answer(scope, receive, send)

        self.app = call


class Json(Response):
    """An answer in JSON, from plain objects."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the bytes of it."""
        return dumps(content)


def create_app(paths: dict[str, str], *, limits: Limits | None = None, api_key: str | None = None, **options: Any) -> FastAPI:
    """Return the service as an ASGI app; `paths` are model folders by name, `options` go to what runs them (device, precision, max_tokens).

    Models are loaded when they are asked for, or by `await app.state.models.preload()`.
    Raises: ConfigError.
    """
    limits = limits or Limits()
    metrics = Metrics()
    models = Models(paths, limits, metrics, options)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        main = threading.current_thread() is threading.main_thread()
        if main:
            loop.add_signal_handler(signal.SIGHUP, models.reload)
        yield
        if main:
            loop.remove_signal_handler(signal.SIGHUP)
        await models.close()

    app = FastAPI(
        title="Unmask", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False,
        description="Masked language models over HTTP: requests that come together are run together.",
    )  # fmt: skip
    app.router.route_class = Direct
    app.state.models, app.state.metrics, app.state.limits = models, metrics, limits
    app.add_middleware(Guard, limits=limits, api_key=api_key, metrics=metrics)  # type: ignore[arg-type]
    _errors(app)
    _state(app, models, metrics)
    _tasks(app, models, limits)
    _page_api(app, models, limits)
    _reload(app, models, keyed=api_key is not None)
    _describe(app)
    try:
        from .page import mount
    except ImportError:
        app.add_route("/", lambda request: RedirectResponse("docs"), methods=["GET"], include_in_schema=False)
    else:
        mount(app)
    return app


async def read(request: Request, body: type[B]) -> B:
    """Return a request's body.

    Raises: Refused for what is no JSON, or not of this shape.
    """
    raw = await request.body()
    try:
        return body.model_validate_json(raw)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)[:20]
        # of a field that may be of several kinds each says what is wrong: the names of kinds are no part of the place
        places = [".".join(str(part) for part in one["loc"] if not KIND.fullmatch(str(part))) for one in found]
        detail = [{"where": place, "error": one["msg"]} for place, one in zip(places, found, strict=True)]
        where = detail[0]["where"]
        said = "; or: ".join(dict.fromkeys(one["error"] for one in detail if one["where"] == where))
        place = "the body is not JSON in UTF-8" if found[0]["type"] == "json_invalid" else where or "the body"
        raise Refused(422, f"{place}: {said}", detail=detail) from None


def _errors(app: FastAPI) -> None:
    async def answer(request: Request, error: Exception) -> Response:
        if isinstance(error, Refused):
            return Json(error.to_dict(), error.status, error.headers)
        if isinstance(error, RunError):
            return Json({"error": str(error)}, 503, {"Retry-After": "5"})
        if isinstance(error, UnmaskError):
            return Json({"error": str(error)}, 422)
        if isinstance(error, HTTPException):
            said = {404: "there is nothing at this address; /docs lists what there is", 405: "this address takes another method"}
            headers = {"Allow": ", ".join(sorted(_methods(request)))} if error.status_code == 405 else dict(error.headers or {})
            return Json({"error": said.get(error.status_code, str(error.detail))}, error.status_code, headers)
        return Json({"error": "something went wrong here, not with the request; the server's log says what"}, 500)

    for kind in (UnmaskError, HTTPException, Exception):
        app.add_exception_handler(kind, answer)


def _methods(request: Request) -> set[str]:
    """Return the methods that an address takes; the framework tells those of the first route only."""
    matching = (route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE)
    return {method for route in matching for method in getattr(route, "methods", None) or ()}


def _state(app: FastAPI, models: Models, metrics: Metrics) -> None:
    @app.get("/health", response_model=schema.State, tags=["state"])
    async def health(request: Request) -> Response:
        """Say that the service runs."""
        return Json({"status": "ok"})

    @app.get("/ready", response_model=schema.State, tags=["state"], responses={503: {"model": schema.State, "description": "It cannot."}})
    async def ready(request: Request) -> Response:
        """Say whether every model can answer: it is loaded, or will be when it is asked, and did not fail."""
        states = {
            name: "loaded" if model.current else "loading" if model.loading else "failed" if model.problem else "on demand"
            for name, model in models.all.items()
        }
        good = "failed" not in states.values()
        return Json({"status": "ready" if good else "not ready", "models": states}, 200 if good else 503)

    @app.get("/metrics", tags=["state"], response_class=Response, responses={**OPEN_ERRORS, 200: {"content": {"text/plain": {}}}})
    async def measured(request: Request) -> Response:
        """Return the counters, for Prometheus."""
        for name, model in models.all.items():
            metrics.waiting.labels(name).set(sum(map(len, model.current.lanes)) if model.current else 0)
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/models", response_model=schema.ModelList, tags=["models"], responses=OPEN_ERRORS)
    async def listed(request: Request) -> Response:
        """List the models."""
        return Json({"models": [model.info() for model in models.all.values()]})

    @app.get("/models/{name}", response_model=schema.ModelInfo, tags=["models"], responses={n: ERRORS[n] for n in (401, 404)})
    async def described(name: str, request: Request) -> Response:
        """Tell about a model."""
        return Json(models.find(name).info())

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        return Response(docs_page(app.openapi()), media_type="text/html; charset=utf-8",
                        headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"})  # fmt: skip


def _tasks(app: FastAPI, models: Models, limits: Limits) -> None:
    answers: Any = next(iter(TASKS.values())).answer
    for task in list(TASKS.values())[1:]:
        answers = answers | task.answer

    @app.post("/models/{name}", tags=["models"], response_model=answers, responses=ERRORS,
              openapi_extra=_body(*(task.body for task in TASKS.values())))  # fmt: skip
    async def ask(name: str, request: Request) -> Response:
        """Do the model's task, in the shapes of the Hugging Face inference API: `InferenceClient(model=".../models/NAME")` works."""
        model = models.find(name)
        body = await read(request, model.task.body)
        running = await model.running()
        work = running.task.read(body, limits)
        return Json(running.task.show(work, await running.ask(work)))

    async def scores(request: Request, name: str | None) -> Response:
        body = await read(request, schema.ScoreRequest)
        work = read_score(body, limits)
        running = await models.find(name or body.model).running()
        results = [scored for scored, _ in await running.score(work)]
        return Json(each(work, results, lambda scored: scored.to_dict()))

    async def tokens(request: Request, name: str | None) -> Response:
        body = await read(request, schema.TokenizeRequest)
        inputs, single = inputs_of(body.inputs, limits)
        few_characters(inputs, limits)
        running = await models.find(name or body.model).running()
        found = [_tokens(running, text, body.add_special_tokens) for text in inputs]
        return Json(found[0] if single else found)

    scored: Any = dict[str, Any] | list[dict[str, Any]]
    tokenized: Any = schema.Tokenized | list[schema.Tokenized]
    given: dict[str, Any] = {"tags": ["models"], "responses": ERRORS}

    @app.post("/models/{name}/score", response_model=scored, openapi_extra=_body(schema.ScoreRequest), **given)
    async def score_by(name: str, request: Request) -> Response:
        """Score texts: pseudo-log-likelihood and pseudo-perplexity, and the log-probability of each token masked in turn."""
        return await scores(request, name)

    @app.post("/score", response_model=scored, openapi_extra=_body(schema.ScoreRequest), **given)
    async def score(request: Request) -> Response:
        """Score texts by the model that the body names."""
        return await scores(request, None)

    @app.post("/models/{name}/tokenize", response_model=tokenized, openapi_extra=_body(schema.TokenizeRequest), **given)
    async def tokenize_by(name: str, request: Request) -> Response:
        """Cut texts into tokens."""
        return await tokens(request, name)

    @app.post("/tokenize", response_model=tokenized, openapi_extra=_body(schema.TokenizeRequest), **given)
    async def tokenize(request: Request) -> Response:
        """Cut texts into the tokens of the model that the body names."""
        return await tokens(request, None)


def _page_api(app: FastAPI, models: Models, limits: Limits) -> None:
    @app.post("/api/fill", tags=["page"], response_model=schema.PageFilled, responses=ERRORS, openapi_extra=_body(schema.PageFill))
    async def fill(request: Request) -> Response:
        """Fill the masks of a text, with `joint` together as well; targets keep their order."""
        body = await read(request, schema.PageFill)
        running = await models.find(body.model).running()
        if running.task.name != "fill-mask":
            raise Refused(422, f"masks are filled by a masked language model; this one does {running.task.name}")
        if body.joint and body.targets is not None:
            raise Refused(422, "joint: targets are scored at each mask on its own; leave out one or the other")
        work = Work([body.text], FillOptions(top_k=body.top_k, targets=body.targets, independent=not body.joint), True, body.joint)
        (result,) = await running.ask(work)
        if result.error is not None:
            raise Refused(422, result.error)
        masks = [
            {"candidates": [
                {"token": one["token"], "word": one["word"], "score": one["score"], "logprob": one["log_prob"], "text": one["sequence"],
                 "error": one["error"]}
                for one in (candidate.to_dict() for candidate in mask)
            ]}
            for mask in result
        ]  # fmt: skip
        joint = [
            {"tokens": one.tokens, "starts": one.starts, "score": one.score, "logprob": one.log_prob, "text": one.sequence}
            for one in result.joint
        ]
        return Json({"masks": masks, "truncated": result.truncated, "joint": joint})

    @app.post("/api/score", tags=["page"], response_model=schema.PageScored, responses=ERRORS, openapi_extra=_body(schema.PageText))
    async def score(request: Request) -> Response:
        """Return each token's surprisal, for a heat map."""
        body = await read(request, schema.PageText)
        few_characters([body.text], limits)
        running = await models.find(body.model).running()
        ((scored, places),) = await running.score(Work([body.text], schema.ScoreParameters(), True))
        if scored.error is not None:
            raise Refused(422, scored.error)
        made = scored.to_dict()
        tokens = [
            {"text": body.text[start:end], "start": start, "end": end, "surprisal_nats": -value, "special": False}
            for (start, end), value in zip(places, made["log_probs"], strict=True)
        ]
        return Json({"tokens": tokens} | {key: made[key] for key in schema.PageScored.model_fields if key != "tokens"})

    @app.post("/api/tokenize", tags=["page"], response_model=schema.Tokenized, responses=ERRORS, openapi_extra=_body(schema.PageText))
    async def tokenize(request: Request) -> Response:
        """Cut a text into tokens, without the special ones at its ends."""
        body = await read(request, schema.PageText)
        few_characters([body.text], limits)
        return Json(_tokens(await models.find(body.model).running(), body.text, False))


def _tokens(running: Any, text: str, special: bool) -> dict[str, Any]:
    encoding = running.tokenizer.backend_tokenizer.encode(text, add_special_tokens=special)
    ids, longest = encoding.ids, running.engine.max_length
    names = running.tokenizer.convert_ids_to_tokens(ids)
    tokens = [
        {"id": number, "token": name, "start": start, "end": end, "special": bool(own)}
        for number, name, (start, end), own in zip(ids, names, encoding.offsets, encoding.special_tokens_mask, strict=True)
    ]
    return {"tokens": tokens, "num_tokens": len(ids), "truncated": longest is not None and len(ids) > longest}


def _reload(app: FastAPI, models: Models, *, keyed: bool) -> None:
    forbidden: dict[int | str, dict[str, Any]] = {403: {"model": schema.ErrorBody, "description": "The service has no key."}}

    @app.post("/models/{name}/reload", tags=["models"], response_model=schema.ModelInfo, responses=ERRORS | forbidden)
    async def reload(name: str, request: Request) -> Response:
        """Load a model's folder anew; the one that serves goes on until it is there. Only where the service has a key."""
        if not keyed:
            raise Refused(403, "a service without a key reloads on SIGHUP, and where a folder has changed; give it --api-key")
        model = models.find(name)
        await model.loaded()
        if model.problem is not None:
            raise Refused(422, "it cannot be loaded, and the one that serves goes on; the server's log says why")
        return Json(model.info())


def _body(*bodies: type[BaseModel]) -> dict[str, Any]:
    refs = [{"$ref": f"#/components/schemas/{body.__name__}"} for body in bodies]
    schema = refs[0] if len(refs) == 1 else {"anyOf": refs}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _describe(app: FastAPI) -> None:
    """Add the bodies, which are read by hand (their bytes go straight to pydantic), to the description of the service."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = plain()
            pairs: Any = [(body, "validation") for body in schema.BODIES]
            _, definitions = models_json_schema(pairs, ref_template="#/components/schemas/{model}")
            made["components"]["schemas"] |= definitions["$defs"]
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
