"""Writes docs/options.md from the declarations in ``skate.core.options``: ``python -m docs.reference``.

A test compares the page with what this makes, so it cannot fall behind.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from skate.core.checks import Option, options_of
from skate.core.options import (
    ADMIN_OPTIONS,
    HTTP_OPTIONS,
    AutoscalingConfig,
    AutoscalingPolicy,
    BackpressureConfig,
    DeploymentOptions,
    RayActorOptions,
    RequestRouterConfig,
)
from skate.core.specs import AdminOptions, HttpOptions

PAGE = Path(__file__).with_name("options.md")
HEAD = "| option | default | takes | meaning | a change |\n|---|---|---|---|---|"
INTRO = """# Options

Made from the declarations in `src/skate/core/options.py` by `python -m docs.reference`; do not edit by hand.

What a change does to replicas that run stands in the last column: nothing; they take it up where they are, with
their process and all requests in hand ([health and reconfiguration](health.md)); or new ones replace them.

Names and defaults are Ray Serve's. *Later* means: the value is checked and has no effect in this version; using it
gives one `NotYetWarning`. An unknown name is an `OptionError` that names the nearest right one.
"""


def row(name: str, option: Option, default: Any) -> str:
    """One line of a table."""
    meaning = option.about + (" *Later.*" if option.since == "later" else "")
    takes = option.check.bounds + (f" ({option.unit})" if option.unit else "")
    cells = (f"`{name}`", f"`{_plain(default)}`", takes, meaning, _CHANGE[option.change])
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


_CHANGE = {"restart": "starts new replicas", "reconfigure": "reaches running ones", "nothing": "touches no replica"}


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value) if isinstance(value, msgspec.Struct) else value


def table(kind: type[msgspec.Struct]) -> str:
    """The options of one group."""
    rows = [row(name, option, option.default) for name, option in options_of(kind).items()]
    return "\n".join((HEAD, *rows))


def page() -> str:
    """The whole page."""
    http = "\n".join(
        (HEAD, *(row(name, option, getattr(HttpOptions(), name)) for name, option in HTTP_OPTIONS.items()))
    )
    admin = (row(name, option, getattr(AdminOptions(), name, None)) for name, option in ADMIN_OPTIONS.items())
    parts = (
        INTRO,
        "## `@serve.deployment(...)` and `.options(...)`\n",
        table(DeploymentOptions),
        "\n## `backpressure_config`\n",
        table(BackpressureConfig),
        "\n## `request_router_config`\n",
        "See [request routers](routers.md).\n",
        table(RequestRouterConfig),
        "\n## `ray_actor_options`\n",
        "On one machine these are recorded and never make an application wait.\n",
        table(RayActorOptions),
        "\n## `autoscaling_config`\n",
        "See [autoscaling](autoscaling.md).\n",
        table(AutoscalingConfig),
        "\n## `policy` of `autoscaling_config`\n",
        table(AutoscalingPolicy),
        "\n## `http_options` of `serve.start`\n",
        http,
        "\n## `admin_options` of `serve.start`, `--admin-*` of `skate start` and `skate run`\n",
        "See [REST](rest.md).\n",
        "\n".join((HEAD, *admin)),
        "\n## Environment\n",
        "`SKATE_RUNTIME_DIR` (folder of sockets; default `$XDG_RUNTIME_DIR/skate` or `/tmp/skate-<uid>`), "
        "`SKATE_STATE_DIR` (where instances that stay keep what is deployed; default `$XDG_STATE_HOME/skate` or "
        "`~/.local/state/skate`, with `SKATE_RUNTIME_DIR` set `.state` in that), "
        "`SKATE_INSTANCE` (name of the instance, default `default`), `SKATE_LOG_LEVEL` (default `INFO`), "
        "`SKATE_ADMIN_TOKEN` (what requests to the REST API must bear; none by default).\n",
    )
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
