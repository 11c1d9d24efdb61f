"""An application as its file wants it: its code imported, and what the file says laid over what the code says.

Law: the file wins over the code, the code over the defaults; what the file no longer says is the code's again. The
versions of an application follow from what comes out, so it does not matter which of the two said it. ``build_app``
changes the process it runs in (import path, working directory, environment), so it runs in one of its own.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from skate.authoring.code import module_of
from skate.authoring.deployment import Application, check_user_config
from skate.authoring.graph import build, deployments, with_options
from skate.authoring.load import imported
from skate.authoring.sources import sources_of
from skate.core.checks import nearest, options_of, read_option, struct
from skate.core.config import AppConfig
from skate.core.environment import export
from skate.core.errors import ImportPathError, OptionError
from skate.core.options import DeploymentOptions, RayActorOptions, RuntimeEnv, deployment_options
from skate.core.specs import AppSpec, DeploymentSpec


def build_app(
    config: AppConfig,
    sys_path: Iterable[str] = (),
    cwd: str | None = None,
    logging_config: Mapping[str, Any] | None = None,
    settle: bool = True,
) -> AppSpec:
    """Imports an application and lays its config over it.

    Modules are looked for in its ``working_dir``, then in ``sys_path``, then in ``cwd``; it stands in the first of
    ``working_dir`` and ``cwd`` that is set. ``logging_config``: of the whole file. ``settle`` False leaves working
    directory and environment of this process alone, because they are others', too.
    Raises ImportPathError, OptionError, GraphError, CodeError, TypeError.
    """
    folder = config.runtime_env.get("working_dir")
    home = folder or cwd
    if home is not None and settle:
        _stand_in(home)
    paths = tuple(dict.fromkeys(os.path.abspath(path) for path in (folder, *sys_path, cwd) if path))
    _put_first(paths)
    if settle:
        export(_runtime_env(config).env_vars)
    looked = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more places" if paths[3:] else "")
    way_out = "name the folder that holds it as working_dir in the application's runtime_env"
    where = f"in {looked} or on Python's import path; {way_out}" if paths else f"on Python's import path; {way_out}"
    app = imported(config.import_path, config.args, where)
    return overridden(app, build(app, config.name, config.route_prefix, paths, home), config, logging_config)


def _stand_in(folder: str) -> None:
    try:
        os.chdir(folder)
    except OSError as error:
        raise ImportPathError(f"the folder {folder} cannot be gone into: {error.strerror}") from error


def _put_first(paths: tuple[str, ...]) -> None:
    importlib.invalidate_caches()
    sys.path[:] = [*paths, *(entry for entry in sys.path if os.path.abspath(entry) not in paths)]


# -- what the file says over what the code says -----------------------------------------------------


def overridden(
    app: Application[Any], spec: AppSpec, config: AppConfig, logging_config: Mapping[str, Any] | None = None
) -> AppSpec:
    """What was built of ``app``, with the options of its config over those of its code. Raises OptionError."""
    known = [one.name for one in spec.deployments]
    for name in config.deployments:
        if name not in known:
            raise OptionError(
                f"there is no deployment {name!r} in {config.import_path}"
                f"{nearest(name, known)}; its deployments are: {', '.join(known)}."
            )
    code = deployments(app)
    changed = (_deployment(one, code[one.name].func_or_class, config, logging_config) for one in spec.deployments)
    return msgspec.structs.replace(spec, deployments=tuple(changed))


def _deployment(
    one: DeploymentSpec, target: Any, config: AppConfig, logging_config: Mapping[str, Any] | None
) -> DeploymentSpec:
    where = f"deployment {one.name!r}"
    options = deployment_options(config.deployments.get(one.name, {}), one.options, where, stacklevel=0)
    logs = config.logging_config or logging_config
    if options.logging_config is None and logs is not None:
        options = deployment_options({"logging_config": logs}, options, where, stacklevel=0)
    options = _with_runtime_env(options, _runtime_env(config))
    if options == one.options:
        return one
    if options.user_config != one.options.user_config:
        check_user_config(target, options, where)
    return with_options(one, options, sources_of(module_of(target)))


def _runtime_env(config: AppConfig) -> RuntimeEnv:
    where = f"application {config.name!r}"
    read: RuntimeEnv = read_option(where, "runtime_env", struct(RuntimeEnv), config.runtime_env)
    return read


def _with_runtime_env(options: DeploymentOptions, of_app: RuntimeEnv) -> DeploymentOptions:
    """The application's surroundings below those of the deployment; environment variables one by one."""
    own = options.ray_actor_options.runtime_env
    declared = options_of(RuntimeEnv)
    merged = {
        name: getattr(own, name) if getattr(own, name) != option.default else getattr(of_app, name)
        for name, option in declared.items()
    }
    merged["env_vars"] = {**of_app.env_vars, **own.env_vars}
    if RuntimeEnv(**merged) == own:
        return options
    actor: RayActorOptions = msgspec.structs.replace(options.ray_actor_options, runtime_env=RuntimeEnv(**merged))
    return msgspec.structs.replace(options, ray_actor_options=actor)
