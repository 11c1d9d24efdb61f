"""A FastAPI application as a user would write it, found by replicas by its import path."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel
from starlette.middleware.base import RequestResponseEndpoint
from starlette.responses import Response

from skate import serve


class Order(BaseModel):
    name: str
    count: int = 1


class Rotten(Exception):
    pass


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    app.state.opened = ["lifespan"]
    yield {"shop": "corner"}


app = FastAPI(title="Fruit", lifespan=lifespan)
before = APIRouter(prefix="/before")
after = APIRouter(prefix="/after")


@before.get("/plain")
def before_plain() -> str:
    return "before"


app.include_router(before)


def user(x_user: Annotated[str | None, Header()] = None) -> Iterator[str]:
    if x_user is None:
        raise HTTPException(401, "who are you?")
    yield x_user.upper()


@app.middleware("http")
async def stamp(request: Request, call_next: RequestResponseEndpoint) -> Response:
    answer = await call_next(request)
    answer.headers["x-stamp"] = request.url.path
    return answer


@app.exception_handler(Rotten)
async def rotten(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"rotten": str(error)}, status_code=410)


@app.get("/function")
def function(request: Request) -> dict[str, Any]:
    return {"shop": request.state.shop, "opened": request.app.state.opened, "root": request.scope["root_path"]}


@serve.deployment
class Pricer:
    def __init__(self, prices: dict[str, float]) -> None:
        self.prices = prices

    def price(self, name: str) -> float:
        return self.prices[name]


@serve.deployment
@serve.ingress(app)
class Fruit:
    def __init__(self, pricer: Any, factor: int) -> None:
        self.pricer = pricer
        self.factor = factor
        self.done: list[str] = []

    @app.get("/")
    def root_get(self) -> str:
        return "get"

    @app.post("/")
    async def root_post(self) -> str:
        return "post"

    @app.get("/price/{name}")
    async def price(self, name: str, count: int = 1) -> float:
        one: float = await self.pricer.price.remote(name)
        return one * count * self.factor

    @app.post("/order", status_code=201)
    async def order(self, order: Order, who: Annotated[str, Depends(user)], tasks: BackgroundTasks) -> dict[str, Any]:
        tasks.add_task(self.done.append, order.name)
        return {"who": who, "order": order.model_dump()}

    @app.get("/done")
    async def get_done(self) -> list[str]:
        return self.done

    @app.get("/rotten")
    def get_rotten(self) -> None:
        raise Rotten("apple")

    @app.get("/missing")
    async def missing(self) -> None:
        raise HTTPException(404, "no such fruit")

    @app.get("/crash")
    async def crash(self) -> float:
        return 1 / 0

    @app.get("/stream")
    def stream(self) -> StreamingResponse:
        return StreamingResponse(str(n) for n in range(self.factor))

    @after.get("/self")
    async def after_self(self) -> int:
        return self.factor

    def plain(self, n: int) -> int:
        return n * self.factor


app.include_router(after)


def application(factor: int = 2) -> Any:
    return Fruit.bind(Pricer.bind({"apple": 1.5}), factor)
