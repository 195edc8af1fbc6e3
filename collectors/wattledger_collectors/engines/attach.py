"""Starts an engine with its hook, and nothing installed changed: only its environment differs.

PYTHONPATH gets a folder whose `sitecustomize` waits for the engine (`autoload`), entry points that
vLLM finds as if wattledger were installed, and what these need of wattledger. Children of the
process are hooked as well. Not covered: `python -S`, `-E` and `-I`, which do not read PYTHONPATH
or sitecustomize.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from wattledger.errors import InputError
from wattledger_collectors.socket_path import checked_socket_path

PACKAGES = ("wattledger_collectors", "wattledger", "wattledger_proto")
"""What an engine's process may import of ours."""

SHOWN = ("sitecustomize.py", "wattledger_attach-0.dist-info")
"""What Python runs at its start, and the entry points of a distribution that is not installed."""


def attach_environment(
    environ: Mapping[str, str],
    *,
    socket: str | None = None,
    job: str | None = None,
    workload: str | None = None,
    model: str | None = None,
) -> dict[str, str]:
    """The environment in which a command's engines are metered; `environ` itself is not changed.

    An option that is None leaves its variable as it is. Raises `wattledger.errors.InputError`
    for a socket path that is too long or a folder of links that cannot be made.
    """
    # gRPC tells connections that end on the engine's stderr unless asked not to.
    attached = {"GRPC_VERBOSITY": "ERROR", **environ, "WATTLEDGER_ATTACH": "1"}
    options = {"JOB": job, "WORKLOAD": workload, "MODEL": model}
    if socket is not None:
        options["SOCKET"] = checked_socket_path(str(Path(socket).absolute()))
    attached.update({f"WATTLEDGER_{key}": value for key, value in options.items() if value})
    ours = import_path({name: _home_of(name) for name in PACKAGES}, cache_folder(environ))
    theirs = environ.get("PYTHONPATH")
    kept = [entry for entry in theirs.split(os.pathsep) if entry not in ours] if theirs else []
    attached["PYTHONPATH"] = os.pathsep.join([*ours, *kept])
    return attached


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Where links are kept: `$XDG_CACHE_HOME/wattledger`."""
    home = environ.get("HOME") or str(Path.home())
    return Path(environ.get("XDG_CACHE_HOME") or Path(home, ".cache"), "wattledger")


def import_path(packages: Mapping[str, Path], cache: Path) -> list[str]:
    """The PYTHONPATH entries from which `packages` (name to folder) alone can be imported.

    Packages with folders of their own (a checkout) are used as they lie. Where they share one
    with strangers (site-packages), a private folder of links is made below `cache`.
    """
    site = packages["wattledger_collectors"] / "engines" / "_site"
    parents = {folder.parent for folder in packages.values()}
    if len(parents) == len(packages):
        return [str(site), *(str(folder.parent) for folder in packages.values())]
    links = {**packages, **{name: site / name for name in SHOWN}}
    return [str(_link_folder(links, cache))]


def _home_of(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise InputError(f"package {package} is missing: reinstall wattledger")
    return Path(spec.origin).resolve().parent


def _link_folder(links: Mapping[str, Path], cache: Path) -> Path:
    """Named after what it links to, so that installations do not mix and a second run finds it."""
    named = "\n".join(f"{name}={target}" for name, target in sorted(links.items()))
    folder = cache / f"attach-{hashlib.sha256(named.encode()).hexdigest()[:16]}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, target in links.items():
            link = folder / name
            if not link.is_symlink() or link.readlink() != target:
                staged = folder / f".{name}.{os.getpid()}"
                staged.symlink_to(target)
                staged.replace(link)
        found = folder.stat()
    except OSError as error:
        mend = "set XDG_CACHE_HOME to a folder of yours"
        raise InputError(f"cannot make links in {folder}: {error.strerror}: {mend}") from error
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
        raise InputError(f"{folder} can be written by others: remove it and try again")
    return folder
