"""What a deployment is made of, and that it can be run again after the files were edited."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from skate import serve
from skate.authoring import sources
from skate.authoring.graph import build
from skate.core.specs import Source

FILES = {
    "shop/__init__.py": "",
    "shop/app.py": (
        "import json, collections.abc\n"
        "from skate import serve\n"
        "from . import prices\n"
        "from .stock import items\n"
        "@serve.deployment\n"
        "class Shop:\n"
        "    def __init__(self, other=None): ...\n"
        "    def late(self):\n"
        "        import shop.seldom\n"
        "@serve.deployment\n"
        "class Other: ...\n"
    ),
    "shop/prices.py": "import rates\nPRICE = 1\n",
    "shop/stock/__init__.py": "from shop.stock import items\n",
    "shop/stock/items.py": "from ..prices import PRICE\nfrom shop.stock import *\n",
    "shop/seldom.py": "import nothing_of_that_name\n",
    "shop/unused.py": "",
    "rates.py": "import shop.app\nRATE = 2\n",
}
MADE_OF = {"shop", "shop.app", "shop.prices", "shop.stock", "shop.stock.items", "shop.seldom", "rates"}


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    for name in MADE_OF:
        monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()
    return tmp_path


def test_the_user_s_own_modules_are_found_and_no_others(shop: Path) -> None:
    importlib.import_module("shop.app")
    found = sources.sources_of("shop.app")
    assert set(found) == MADE_OF
    assert "shop.seldom" not in sys.modules, "looking must not import"
    assert found["rates"].path == str(shop / "rates.py")
    assert sources.text_of(found["rates"]) == FILES["rates.py"].encode()
    assert sources.sources_of("json") == {} and sources.sources_of("no_such_module") == {}


def test_the_version_follows_every_text_that_is_imported_and_no_other(shop: Path) -> None:
    module = importlib.import_module("shop.app")

    def versions() -> list[str]:
        spec = build(module.Shop.bind(module.Other.bind()))
        return [one.version for one in spec.deployments]

    before = versions()
    (shop / "shop/unused.py").write_text("X = 1\n")
    assert versions() == before
    (shop / "rates.py").write_text("RATE = 3\n")
    assert all(new != old for new, old in zip(versions(), before, strict=True))


def test_the_fingerprint_does_not_depend_on_the_folder() -> None:
    here = {"m": Source("/here/m.py", _packed("X = 1")), "n": Source("/here/n.py", _packed(""))}
    there = {"n": Source("/there/n.py", _packed("")), "m": Source("/there/m.py", _packed("X = 1"))}
    assert sources.fingerprint(here) == sources.fingerprint(there)
    assert sources.fingerprint(here) != sources.fingerprint({**here, "m": Source("/here/m.py", _packed("X = 2"))})


def _packed(text: str) -> bytes:
    import zlib

    return zlib.compress(text.encode())


def test_too_much_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = {"m": Source("/m.py", _packed("X" * 60))}, {"n": Source("/n.py", _packed("X" * 60))}
    assert set(sources.merged([one, two])) == {"m", "n"}
    monkeypatch.setattr(sources, "BYTES_MAX", 100)
    assert sources.merged([one, two]) == {}
    monkeypatch.setattr(sources, "BYTES_MAX", 1000)
    monkeypatch.setattr(sources, "MODULES_MAX", 1)
    assert sources.merged([one, two]) == {}


CHILD = """
import sys, msgspec
from skate.authoring.sources import install
from skate.core.specs import Source
install(msgspec.msgpack.decode(sys.stdin.buffer.read(), type=dict[str, Source]))
sys.path.insert(0, sys.argv[1])
import shop.app, rates, shop.prices
print(rates.RATE, shop.prices.PRICE, shop.prices.__file__, shop.stock.__path__, type(shop.__loader__).__name__)
print(open(shop.__path__[0] + "/data.txt").read())
try:
    rates.fails()
except ValueError:
    import traceback
    print(traceback.extract_tb(sys.exc_info()[2])[-1].line)
"""


def test_kept_texts_run_after_the_files_were_edited(shop: Path) -> None:
    (shop / "rates.py").write_text("RATE = 2\ndef fails():\n    raise ValueError  # as it was\n")
    (shop / "shop/data.txt").write_text("beside it")
    importlib.import_module("shop.app")
    kept = msgspec.msgpack.encode(sources.sources_of("shop.app"))
    (shop / "rates.py").write_text("RATE = 99\n\n\n\n\ndef fails(): ...\n")
    (shop / "shop/prices.py").unlink()
    command = [sys.executable, "-c", CHILD, str(shop)]
    done = subprocess.run(command, input=kept, capture_output=True, timeout=30, check=True)
    lines = done.stdout.decode().splitlines()
    path = str(shop / "shop")
    assert lines[0] == f"2 1 {path}/prices.py ['{path}/stock'] SourceFileLoader", (
        "an unchanged file is imported as usual"
    )
    assert lines[1] == "beside it"
    assert lines[2] == "raise ValueError  # as it was"


def test_a_script_s_own_text_is_left_out() -> None:
    found = sources.sources_of("__main__")
    assert "__main__" not in found


def test_an_application_carries_its_texts(shop: Path) -> None:
    module = importlib.import_module("shop.app")
    assert set(build(module.Shop.bind()).sources) == MADE_OF
    assert isinstance(module.Shop, serve.Deployment)


PRELOADED = """
import sys, msgspec, zlib
sys.path.insert(0, {folder!r})
from skate.authoring import sources
import shop.app as before
kept = sources.sources_of("shop.app")
sources._BORN = 2e12  # nothing was edited since
if {news!r} == "edited":
    open(kept["shop.prices"].path, "w").write("PRICE = 2\\n")
    sources._BORN = 0.0
if {news!r} == "kept":
    kept["shop.prices"] = msgspec.structs.replace(kept["shop.prices"], text=zlib.compress(b"PRICE = 3\\n"))
sources.renew({{}})
assert sys.modules["shop.app"] is before, "its own modules were forgotten"
sources._PID = 0  # as if it was forked
sources.renew(kept)
sources.install(kept)
import shop.app as after
from shop import prices
print(after is before, prices.PRICE)
"""


@pytest.mark.parametrize(
    ("news", "said"), [("edited", "False 1"), ("kept", "False 3"), ("nothing", "True 1")], ids=lambda it: it
)
def test_what_was_preloaded_is_imported_anew_if_it_is_another_text_by_now(news: str, said: str, shop: Path) -> None:
    script = PRELOADED.format(folder=str(shop), news=news)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert run.stdout.strip() == said, run.stderr
