"""Users' programs in processes of their own: code in ``__main__``, notebooks, other processes, and every way to end."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.e2e.world import Script, leftovers, processes_of, until

Start = Callable[..., Script]

START = """
def start(**options):
    serve.start(http_options={"port": 0, **options})
    print("http://" + serve.status().proxies["0"].address, os.getsid(serve.status().controller_pid))
"""

SIMPLE = (
    START
    + """
@serve.deployment
class Hello:
    def __init__(self, word):
        self.word = word

    async def __call__(self, request):
        return f"{self.word} {os.getpid()}"

    def slow(self):
        time.sleep(60)

    def __del__(self):
        print("del", flush=True)
"""
)


def started(script: Script) -> tuple[str, int]:
    """Its address and the session of its instance."""
    url, session = script.line().split()
    return url, int(session)


def get(url: str) -> httpx.Response:
    return httpx.get(url, trust_env=False, timeout=10)


def gone(runtime_dir: Path, session: int) -> None:
    until(lambda: not leftovers(runtime_dir, session))


# -- how it ends ------------------------------------------------------------------------------------


def test_a_script_that_ends_leaves_nothing(script: Start, runtime_dir: Path) -> None:
    run = script(
        SIMPLE + "start()\nhandle = serve.run(Hello.bind('hi'))\nprint(handle.remote(None).result().split()[0])"
    )
    _, session = started(run)
    assert sorted(run.ends()) == ["del", "hi"]
    gone(runtime_dir, session)


def test_shutdown_leaves_nothing_and_everything_can_start_again(script: Start, runtime_dir: Path) -> None:
    run = script(
        SIMPLE
        + """
for n in range(2):
    start()
    print(serve.run(Hello.bind(n)).remote(None).result().split()[0])
    serve.shutdown()
    print(os.listdir(os.environ["SKATE_RUNTIME_DIR"]), serve.status().applications)
    serve.shutdown()
input()
"""
    )
    sessions = []
    for n in range(2):
        sessions.append(started(run)[1])
        assert {run.line(), run.line()} == {"del", str(n)}
        assert run.line() == "[] {}"
    assert not any(leftovers(runtime_dir, session) for session in sessions)
    run.say()
    run.ends()


def test_kill_9_of_the_script_leaves_nothing(script: Start, runtime_dir: Path) -> None:
    run = script(
        SIMPLE
        + """
start()
handle = serve.run(Hello.options(num_replicas=2).bind("hi"))
busy = handle.slow.remote()
print("ready")
time.sleep(60)
"""
    )
    url, session = started(run)
    assert run.line() == "ready"
    assert get(url).text.startswith("hi")
    until(lambda: len(processes_of(session)) == 6)  # the standby comes a moment later
    run.signal(signal.SIGKILL)
    run.ends(-signal.SIGKILL)
    gone(runtime_dir, session)
    with pytest.raises(httpx.ConnectError):
        get(url)


# Says when the wait begins: a Ctrl-C before that meets the start, which it interrupts like any other code.
TOLD = """
wait = serve.wait_for_interrupt
def told():
    print("waits")
    wait()
serve.wait_for_interrupt = told
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_in_a_blocking_run(script: Start, runtime_dir: Path, number: signal.Signals) -> None:
    run = script(SIMPLE + TOLD + "start()\nserve.run(Hello.bind('hi'), blocking=True)\nprint('after')")
    url, session = started(run)
    assert run.line() == f"Application default is ready at {url}/; Ctrl-C ends it."
    assert run.line() == "waits"
    assert get(url).status_code == 200
    run.signal(number)
    if number == signal.SIGINT:
        assert sorted(run.ends()) == ["after", "del"]
        assert "Traceback" not in run.errors.read_text()
    else:
        run.ends(-signal.SIGTERM)
    gone(runtime_dir, session)


def test_ctrl_c_while_it_waits_for_a_result(script: Start, runtime_dir: Path) -> None:
    run = script(
        SIMPLE
        + """
start()
response = serve.run(Hello.options(graceful_shutdown_timeout_s=0.2).bind("hi")).slow.remote()
print("waits")
response.result()
"""
    )
    _, session = started(run)
    assert run.line() == "waits"
    run.signal(signal.SIGINT)
    run.ends(None)
    assert "KeyboardInterrupt" in run.errors.read_text()
    gone(runtime_dir, session)


def test_an_uncaught_exception_ends_everything(script: Start, runtime_dir: Path) -> None:
    run = script(SIMPLE + "start()\nserve.run(Hello.bind('hi'))\nraise ValueError('mine')")
    _, session = started(run)
    run.ends(1)
    assert "ValueError: mine" in run.errors.read_text()
    gone(runtime_dir, session)


def test_a_module_that_does_not_run_leaves_nothing(script: Start, runtime_dir: Path) -> None:
    run = script(
        START
        + """
@serve.deployment(max_constructor_retry_count=1)
class Bad:
    def __init__(self):
        raise OSError("no disk")
start()
try:
    serve.run(Bad.bind())
except skate.core.errors.DeployError as error:
    print("OSError: no disk" in str(error), 'raise OSError("no disk")' in str(error))
"""
    )
    _, session = started(run)
    assert run.ends() == ["True True"]
    gone(runtime_dir, session)


# -- starting ---------------------------------------------------------------------------------------


def test_a_port_in_use(script: Start, runtime_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = script(
            f"""
try:
    serve.start(http_options={{"port": {port}}})
except OSError as error:
    print(type(error).__name__, "{port}" in str(error), "another port" in str(error))
print(os.listdir(os.environ["SKATE_RUNTIME_DIR"]))
"""
        )
        assert run.ends() == ["AddressInUseError True True", "[]"]


def test_wrong_start_options(script: Start, runtime_dir: Path) -> None:
    run = script(
        """
for options in ({"prt": 1}, {"port": 70000}, {"host": 5}, {"root_path": "x"}, {"request_timeout_s": -1}):
    try:
        serve.start(http_options=options)
    except ValueError as error:
        print(type(error).__name__, next(iter(options)) in str(error))
for what in ({"engine": "ray"}, {"proxies": 0}):
    try:
        serve.start(**what)
    except ValueError as error:
        print(type(error).__name__, next(iter(what)) in str(error))
print(os.listdir(os.environ["SKATE_RUNTIME_DIR"]))
"""
    )
    assert run.ends() == ["OptionError True"] * 7 + ["[]"]


def test_start_twice_and_a_second_script(script: Start, runtime_dir: Path, tmp_path: Path) -> None:
    first = script(
        SIMPLE
        + """
start()
before = serve.status()
serve.start(http_options={"port": 0})
print(serve.status().controller_pid == before.controller_pid, serve.status().proxies == before.proxies)
serve.run(Hello.bind("first"), name="one", route_prefix="/one")
input()
print(sorted(serve.status().applications))
print(serve.get_app_handle("two").remote(None).result().split()[0])
"""
    )
    url, session = started(first)
    assert first.line() == "True True"
    folder = tmp_path / "second"
    folder.mkdir()
    second = Script(
        folder,
        SIMPLE
        + "serve.run(Hello.bind('second'), name='two', route_prefix='/two')\nprint(serve.status().controller_pid)",
    )
    try:
        until(lambda: get(f"{url}/one").status_code == 200)
        second.ends()
        assert get(f"{url}/two").text.startswith("second")
    finally:
        second.close()
    first.say()
    lines = first.ends()
    said = [line for line in lines if line.replace("del", "")]  # two replicas end at once: their lines may run together
    assert said == ["['one', 'two']", "second"]
    gone(runtime_dir, session)


def test_an_instance_without_http(script: Start, runtime_dir: Path) -> None:
    run = script(
        SIMPLE
        + "serve.start(http=False)\nhandle = serve.run(Hello.bind('hi'))\n"
        + "print(handle.remote(None).result()[:2], serve.status().proxies)"
    )
    assert [line for line in run.ends() if line != "del"] == ["hi {}"]


def test_two_proxies_share_a_port(script: Start, runtime_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    run = script(
        SIMPLE
        + f"""
serve.start(http_options={{"port": {port}}}, proxies=2)
serve.run(Hello.bind("hi"))
print(sorted(proxy.address for proxy in serve.status().proxies.values()))
input()
"""
    )
    assert run.line() == str([f"127.0.0.1:{port}"] * 2)
    assert {get(f"http://127.0.0.1:{port}").status_code for _ in range(8)} == {200}
    run.say()
    run.ends()


# -- code of __main__ -------------------------------------------------------------------------------


def test_a_fastapi_application_in_main(script: Start, runtime_dir: Path) -> None:
    run = script(
        START
        + """
from fastapi import Depends, FastAPI, Request
from pydantic import BaseModel
from contextlib import asynccontextmanager

class Item(BaseModel):
    name: str

@asynccontextmanager
async def lifespan(app):
    app.state.word = "Hello"
    yield

app = FastAPI(lifespan=lifespan)
lock = threading.Lock()

def user(request: Request):
    return request.headers.get("x-user", "nobody")

class Mine(Exception):
    pass

@app.exception_handler(Mine)
def mine(request, error):
    from starlette.responses import PlainTextResponse
    return PlainTextResponse("mine", status_code=409)

@app.middleware("http")
async def stamp(request, call_next):
    answer = await call_next(request)
    answer.headers["x-stamp"] = "1"
    return answer

@serve.deployment
@serve.ingress(app)
class Hello:
    @app.get("/{name}")
    def hello(self, name: str, who: str = Depends(user)):
        with lock:
            return f"{app.state.word} {name} from {who}"

    @app.post("/")
    async def post(self, item: Item) -> Item:
        if item.name == "mine":
            raise Mine
        return Item(name=item.name.upper())

if __name__ == "__main__":
    start()
    serve.run(Hello.bind(), route_prefix="/shop")
    print("ready")
    input()
"""
    )
    url, _ = started(run)
    assert run.line() == "ready"
    answer = httpx.get(f"{url}/shop/Corey", headers={"x-user": "Ada"}, trust_env=False)
    assert (answer.text, answer.headers["x-stamp"]) == ('"Hello Corey from Ada"', "1")
    assert httpx.post(f"{url}/shop/", json={"name": "x"}, trust_env=False).json() == {"name": "X"}
    assert httpx.post(f"{url}/shop/", json={"name": "mine"}, trust_env=False).status_code == 409
    assert httpx.post(f"{url}/shop/", json={}, trust_env=False).status_code == 422
    assert "/shop/openapi.json" in get(f"{url}/shop/docs").text
    run.say()
    run.ends()


def test_classes_of_main_are_the_same_on_both_sides(script: Start, runtime_dir: Path) -> None:
    run = script(
        START
        + """
class Own(Exception):
    def __init__(self, code):
        super().__init__(f"code {code}")
        self.code = code
    def __reduce__(self):
        return Own, (self.code,)

class Value:
    def __init__(self, x):
        self.x = x

CONSTANT = 40

def helper(x):
    return x + CONSTANT

@serve.deployment
class Child:
    def fail(self, value):
        raise Own(value.x)

@serve.deployment
class Parent:
    def __init__(self, child):
        self.child = child
    async def __call__(self, value):
        assert type(value) is Value, type(value)
        return Value(helper(value.x))
    async def fail(self, value):
        try:
            await self.child.fail.remote(value)
        except Own as error:
            raise Own(error.code + 1)

start()
handle = serve.run(Parent.bind(Child.bind()))
back = handle.remote(Value(2)).result()
print(type(back) is Value, back.x)
try:
    handle.fail.remote(Value(7)).result()
except Own as error:
    print(error.code, "raise Own(error.code + 1)" in str(error.__cause__))
"""
    )
    started(run)
    assert run.ends() == ["True 42", "8 True"]


def test_a_notebook_with_its_loop_running(script: Start, runtime_dir: Path) -> None:
    run = script(
        SIMPLE
        + """
start()

async def cell(source):
    return await eval(compile(source, "cell", "eval", flags=__import__("ast").PyCF_ALLOW_TOP_LEVEL_AWAIT))

async def notebook():
    handle = serve.run(Hello.bind("hi"))  # blocks the loop while it starts, as any call does
    print((await handle.remote(None)).split()[0])
    print(len(await asyncio.gather(*[one(handle) for _ in range(10)])))
    try:
        handle.remote(None).result()
    except RuntimeError as error:
        print("await" in str(error))
    print(sorted(serve.status().applications))
    serve.delete("default")

async def one(handle):
    return await handle.remote(None)

asyncio.run(notebook())
"""
    )
    started(run)
    assert [line for line in run.ends() if line != "del"] == ["hi", "10", "True", "['default']"]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_pickled_handle_in_a_child_process(script: Start, runtime_dir: Path, method: str) -> None:
    run = script(
        """
import multiprocessing

def work(handle, n):
    return handle.remote(n).result()

@serve.deployment
class Add:
    def __call__(self, n):
        return n + 1

if __name__ == "__main__":
    serve.start(http=False)
    handle = serve.run(Add.bind())
    assert handle.remote(1).result() == 2
    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
        print(pool.starmap(work, [(handle, n) for n in range(4)]))
    print(handle.remote(10).result())
""",
        method,
    )
    assert run.ends() == ["[1, 2, 3, 4]", "11"]


def test_a_handle_in_a_strange_process(script: Start, runtime_dir: Path) -> None:
    """A process that knows nothing but the pickle: not the instance, not the code."""
    run = script(
        SIMPLE
        + """
import pickle, subprocess
start()
handle = serve.run(Hello.bind("hi"))
text = "import pickle, sys; print(pickle.loads(bytes.fromhex(sys.argv[1])).remote(None).result().split()[0])"
environment = {key: value for key, value in os.environ.items() if not key.startswith("SKATE")}
command = [sys.executable, "-c", text, pickle.dumps(handle).hex()]
done = subprocess.run(command, capture_output=True, text=True, env=environment)
print(done.stdout.strip(), done.stderr)
"""
    )
    started(run)
    assert [line.strip() for line in run.ends() if line != "del"] == ["hi"]


def test_handles_after_the_end(script: Start, runtime_dir: Path) -> None:
    run = script(
        SIMPLE
        + """
start()
handle = serve.run(Hello.options(graceful_shutdown_timeout_s=0.2).bind("hi"))
waiting = handle.slow.remote()
serve.shutdown()
for call in (lambda: handle.remote(None), lambda: waiting, lambda: serve.delete("default")):
    try:
        print(call().result(timeout_s=5))
    except Exception as error:
        print(type(error).__name__)
"""
    )
    started(run)
    lines = [line for line in run.ends() if line != "del"]
    assert len(lines) == 3 and not {"AssertionError", "TimeoutError", "CallTimeoutError"} & set(lines), lines
    assert lines[2] == "NotRunningError"


def test_a_user_of_an_instance_that_is_killed(script: Start, runtime_dir: Path, tmp_path: Path) -> None:
    """Calls that run, that wait and that come later fail at once; a new instance can be started."""
    owner = script(
        SIMPLE + "start()\nserve.run(Hello.options(max_ongoing_requests=1).bind('hi'))\nprint('up')\ntime.sleep(60)"
    )
    _, session = started(owner)
    assert owner.line() == "up"
    folder = tmp_path / "user"
    folder.mkdir()
    user = Script(
        folder,
        SIMPLE
        + """
def outcome(call):
    try:
        return call()
    except Exception as error:
        return type(error).__name__

handle = serve.get_app_handle()
running, waiting = handle.slow.remote(), handle.slow.remote()
while serve.status().calls.open < 2:
    time.sleep(0.01)
print("connected")
input()
calls = [running, waiting]
ends = [outcome(lambda: call.result(timeout_s=5)) for call in calls]
print(ends + [outcome(handle.remote), outcome(serve.get_app_handle)])
start()
print(serve.run(Hello.bind("new")).remote(None).result().split()[0])
""",
    )
    try:
        assert user.line() == "connected"
        owner.signal(signal.SIGKILL)
        owner.ends(-signal.SIGKILL)
        gone(runtime_dir, session)
        user.say()
        assert user.line() == str(["ReplicaDiedError"] + ["NotRunningError"] * 3)
        started(user)
        assert "new" in user.ends()
    finally:
        user.close()


def test_python_of_the_user_is_left_alone(script: Start, runtime_dir: Path) -> None:
    """Signals, loop policy and standard streams of the script are as they were."""
    run = script(
        SIMPLE
        + """
import signal
before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), type(asyncio.get_event_loop_policy())
start()
serve.run(Hello.bind("hi"))
after = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), type(asyncio.get_event_loop_policy())
print(before == after, threading.current_thread() is threading.main_thread())
"""
    )
    started(run)
    assert "True True" in run.ends()
