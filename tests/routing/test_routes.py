"""Routes: the longest prefix that ends at a "/" wins, and no path is slow."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from skate.core.specs import Route
from skate.dataplane.routing.routes import RouteTable


def table(*prefixes: str, root_path: str = "") -> RouteTable:
    return RouteTable([Route(prefix, f"app {prefix}", "D") for prefix in prefixes], root_path)


def app(routes: RouteTable, path: str) -> str | None:
    mount = routes.match(path)
    return None if mount is None else mount.app.removeprefix("app ")


def test_a_prefix_takes_itself_and_what_is_below_it_but_not_its_name_continued() -> None:
    routes = table("/a")
    assert [app(routes, path) for path in ("/a", "/a/", "/a/x", "/a//x")] == ["/a"] * 4
    assert [app(routes, path) for path in ("/ab", "/", "/b/a", "/A", "", "*", "a")] == [None] * 7


def test_the_longest_prefix_wins_and_the_root_takes_the_rest() -> None:
    routes = table("/", "/a", "/a/b", "/a/b/c")
    expected = {"/": "/", "/x": "/", "/a": "/a", "/a/x": "/a", "/a/b": "/a/b", "/a/bc": "/a", "/a/b/c/d/e": "/a/b/c"}
    assert {path: app(routes, path) for path in expected} == expected


def test_a_deeper_prefix_is_found_without_the_ones_above_it() -> None:
    routes = table("/a/b/c")
    assert app(routes, "/a/b/c/x") == "/a/b/c"
    assert app(routes, "/a/b") is None


def test_root_path_and_prefix_make_the_root_path_of_the_application() -> None:
    routes = table("/", "/a", "/b/", root_path="/api")
    found = [routes.match(path) for path in ("/x", "/a", "/b/x")]
    assert [mount.root_path for mount in found if mount] == ["/api", "/api/a", "/api/b"]
    assert [mount.prefix for mount in found if mount] == ["/", "/a", "/b"]
    assert [mount.deployment_key for mount in found if mount] == ["app //D", "app /a/D", "app /b//D"]


def test_the_table_shows_prefixes_as_declared() -> None:
    assert table("/", "/a").table() == {"/": "app /", "/a": "app /a"}
    assert RouteTable().table() == {}
    assert RouteTable().match("/") is None


def test_a_path_of_many_slashes_costs_no_more_than_the_deepest_prefix() -> None:
    routes = table("/", "/a/b")
    lookups = 0

    class Counting(dict[str, object]):
        def get(self, key: str, default: object = None) -> object:  # type: ignore[override]
            nonlocal lookups
            lookups += 1
            return super().get(key, default)

    routes._by_prefix = Counting(routes._by_prefix)  # type: ignore[assignment]
    assert app(routes, "/" * 100_000) == "/"
    assert app(routes, "/a" * 100_000) == "/"
    assert lookups <= 4


segments = st.lists(st.sampled_from(["a", "b", "ab", "c d", "ü", ""]), max_size=5)
prefixes = st.lists(st.lists(st.sampled_from(["a", "b", "ab"]), max_size=4), max_size=6)


@given(prefixes, segments)
def test_it_agrees_with_the_definition(declared: list[list[str]], path_segments: list[str]) -> None:
    names = {"/" + "/".join(parts) for parts in declared}
    path = "/" + "/".join(path_segments)
    fitting = [name for name in names if name == "/" or path == name or path.startswith(name + "/")]
    assert app(table(*names), path) == max(fitting, key=len, default=None)
