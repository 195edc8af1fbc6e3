"""Attaching: what the environment becomes, and what a Python started in it does."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Mapping
from pathlib import Path, PosixPath

import pytest

from fakes.collector_server import FakeCollector
from wattledger.errors import InputError
from wattledger_collectors.engines.attach import PACKAGES, SHOWN, attach_environment, import_path
from wattledger_collectors.socket_path import default_socket_path

BASE = {"PATH": "/bin", "HOME": "/home/me", "PYTHONPATH": "/theirs:"}


def test_the_options_become_variables() -> None:
    attached = attach_environment(BASE, socket="/s.sock", job="4711", workload="w", model="m")
    assert attached["WATTLEDGER_ATTACH"] == "1"
    assert attached["WATTLEDGER_SOCKET"] == "/s.sock"
    assert attached["WATTLEDGER_JOB"] == "4711"
    assert attached["WATTLEDGER_WORKLOAD"] == "w"
    assert attached["WATTLEDGER_MODEL"] == "m"
    assert attached["PATH"] == "/bin"
    assert BASE == {"PATH": "/bin", "HOME": "/home/me", "PYTHONPATH": "/theirs:"}


def test_what_is_not_said_stays_as_it_was() -> None:
    attached = attach_environment({**BASE, "WATTLEDGER_JOB": "1", "GRPC_VERBOSITY": "INFO"})
    assert attached["WATTLEDGER_JOB"] == "1"
    assert attached["GRPC_VERBOSITY"] == "INFO"
    assert "WATTLEDGER_SOCKET" not in attached


def test_their_pythonpath_comes_after_ours_and_once() -> None:
    attached = attach_environment(BASE)
    assert attached["PYTHONPATH"].endswith(":/theirs:")
    assert attach_environment(attached)["PYTHONPATH"] == attached["PYTHONPATH"]
    assert not attach_environment({"HOME": "/"})["PYTHONPATH"].endswith(":")


def test_a_relative_socket_is_made_absolute_and_a_long_one_refused() -> None:
    attached = attach_environment(BASE, socket="w.sock")
    assert attached["WATTLEDGER_SOCKET"] == str(Path.cwd() / "w.sock")
    with pytest.raises(InputError, match=r"has 121 bytes, a Unix socket takes 107"):
        attach_environment(BASE, socket="/" + "x" * 120)


def test_a_checkout_is_used_as_it_lies(tmp_path: Path) -> None:
    packages = {name: tmp_path / "src" / name / name for name in PACKAGES}
    entries = import_path(packages, tmp_path / "cache")
    site = packages["wattledger_collectors"] / "engines" / "_site"
    assert entries == [str(site), *(str(tmp_path / "src" / name) for name in PACKAGES)]
    assert not (tmp_path / "cache").exists()


def installed(tmp_path: Path) -> dict[str, Path]:
    packages = {name: tmp_path / "site-packages" / name for name in PACKAGES}
    for folder in (*packages.values(), tmp_path / "site-packages" / "stranger"):
        folder.mkdir(parents=True)
    site = packages["wattledger_collectors"] / "engines" / "_site"
    site.mkdir(parents=True)
    (site / "sitecustomize.py").touch()
    return packages


def test_of_an_installation_only_our_packages_are_seen(tmp_path: Path) -> None:
    packages = installed(tmp_path)
    (entry,) = import_path(packages, tmp_path / "cache")
    assert sorted(path.name for path in Path(entry).iterdir()) == sorted([*PACKAGES, *SHOWN])
    assert stat.S_IMODE(Path(entry).stat().st_mode) == 0o700
    assert (Path(entry) / "sitecustomize.py").exists()
    assert import_path(packages, tmp_path / "cache") == [entry]


def test_a_broken_link_is_made_again(tmp_path: Path) -> None:
    packages = installed(tmp_path)
    (entry,) = import_path(packages, tmp_path / "cache")
    link = Path(entry) / "wattledger"
    link.unlink()
    link.symlink_to("/elsewhere")
    import_path(packages, tmp_path / "cache")
    assert link.readlink() == packages["wattledger"]


def test_links_that_others_may_change_are_refused(tmp_path: Path) -> None:
    packages = installed(tmp_path)
    (entry,) = import_path(packages, tmp_path / "cache")
    Path(entry).chmod(0o777)
    with pytest.raises(InputError, match="written by others: remove it"):
        import_path(packages, tmp_path / "cache")


def test_links_that_cannot_be_made_name_the_mend(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(InputError, match="set XDG_CACHE_HOME"):
        import_path(installed(tmp_path), tmp_path / "cache")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"WATTLEDGER_SOCKET": "/a.sock", "XDG_RUNTIME_DIR": "/run/user/7"}, "/a.sock"),
        (
            {"XDG_RUNTIME_DIR": "/run/user/7", "HOME": "/h"},
            "/run/user/7/wattledger/wattledger.sock",
        ),
        ({"XDG_STATE_HOME": "/state", "HOME": "/h"}, "/state/wattledger/wattledger.sock"),
        ({"HOME": "/h"}, "/h/.local/state/wattledger/wattledger.sock"),
    ],
)
def test_where_the_socket_is(environ: Mapping[str, str], expected: str, tmp_path: Path) -> None:
    assert default_socket_path(environ, tmp_path / "absent.sock") == expected


def test_the_system_daemons_socket_is_preferred_when_it_is_there(tmp_path: Path) -> None:
    system_socket = tmp_path / "wattledger.sock"
    environ = {"XDG_RUNTIME_DIR": "/run/user/7"}
    assert default_socket_path(environ, system_socket).startswith("/run/user/7/")
    system_socket.touch()
    assert default_socket_path(environ, system_socket) == str(system_socket)


class _BehindAClosedDoor(PosixPath):
    """Lies in a folder that this user may not enter."""

    def exists(self) -> bool:
        raise PermissionError(13, "Permission denied", str(self))


def test_a_socket_behind_a_closed_door_is_taken_to_be_there() -> None:
    system_socket = _BehindAClosedDoor("/run/wattledger/wattledger.sock")
    assert default_socket_path({}, system_socket) == str(system_socket)


def test_a_socket_path_of_107_bytes_fits_and_longer_does_not(tmp_path: Path) -> None:
    fits = "/" + "\u00e9" * 53
    assert default_socket_path({"WATTLEDGER_SOCKET": fits}) == fits
    with pytest.raises(InputError, match="set WATTLEDGER_SOCKET to a shorter path"):
        default_socket_path({"WATTLEDGER_SOCKET": fits + "x"})
    with pytest.raises(InputError):
        default_socket_path({"XDG_RUNTIME_DIR": "/" + "x" * 100}, tmp_path / "absent.sock")


# ------------------------------------------------------------- a Python started in it

LLAMA = '''
class Llama:
    """Answers with the numbers of its prompt."""
    model_path, n_tokens = "/models/tiny.gguf", 0
    def eval(self, tokens):
        self.n_tokens += len(tokens)
    def generate(self, tokens):
        self.eval(tokens)
        for token in tokens:
            yield token
            self.eval([token])
    def token_eos(self):
        return 2
'''
ENGINE = (
    "import inspect, llama_cpp\n"
    "from llama_cpp import llama\n"
    "print(list(llama.Llama().generate([7, 8, 9])))\n"
    "print(type(llama.__loader__).__name__, type(llama.__spec__.loader).__name__)\n"
    "print(inspect.getsource(llama).count('Answers'))\n"
)
EXPECTED = "[7, 8, 9]\nSourceFileLoader SourceFileLoader\n1\n"


@pytest.fixture
def folder() -> Iterator[Path]:
    """Holds a `llama_cpp` to import; short enough for a socket's path."""
    with tempfile.TemporaryDirectory(prefix="wl") as name:
        package = Path(name) / "llama_cpp"
        package.mkdir()
        (package / "__init__.py").write_text("from .llama import *\n")
        (package / "llama.py").write_text(LLAMA)
        yield Path(name)


def run_engine(
    folder: Path, code: str = ENGINE, python: str = sys.executable, attach: bool = True
) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(folder)}
    if attach:
        environ = attach_environment(environ, socket=str(folder / "w.sock"), job="j7")
    command = [python, "-c", code]
    return subprocess.run(
        command, env=environ, check=True, capture_output=True, text=True, timeout=60
    )


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An environment that has neither wattledger nor grpc nor anything else."""
    environment = tmp_path_factory.mktemp("bare")
    venv.create(environment, with_pip=False)
    return str(environment / "bin" / "python")


def test_an_attached_engine_is_metered_and_notices_nothing(folder: Path) -> None:
    collector = FakeCollector(folder / "w.sock")
    try:
        result = run_engine(folder)
    finally:
        collector.stop()
    assert (result.stdout, result.stderr) == (EXPECTED, "")
    (tokens,) = collector.told().values()
    assert (tokens.prefill, tokens.decode) == (3, 3)
    assert collector.batches[0].engine.model == "tiny.gguf"
    assert collector.batches[0].engine.job == "j7"


def test_without_a_daemon_the_engine_runs_the_same_and_says_so(folder: Path) -> None:
    result = run_engine(folder)
    assert result.stdout == EXPECTED
    assert result.stderr == (
        f"wattledger: no daemon at {folder}/w.sock (UNAVAILABLE): tokens are kept for it;"
        " run: wattledgerd\n"
    )


def test_without_grpc_the_engine_runs_the_same_and_says_so(folder: Path, bare_python: str) -> None:
    result = run_engine(folder, python=bare_python)
    assert result.stdout == EXPECTED
    assert result.stderr == (
        "wattledger: llama_cpp.llama is not metered: grpc is not installed here;"
        " run: pip install 'wattledger[collector]'\n"
    )


def test_the_engine_sees_none_of_our_other_packages(folder: Path, bare_python: str) -> None:
    code = (
        "from importlib.util import find_spec\n"
        "names = ('wattledger_collectors', 'wattledger', 'wattledger_proto',"
        " 'wattledger_daemon', 'wattledger_cli', 'pytest')\n"
        "print(*(name for name in names if find_spec(name)))\n"
    )
    result = run_engine(folder, code, python=bare_python)
    assert result.stdout == "wattledger_collectors wattledger wattledger_proto\n"


def test_other_programs_load_nothing_of_ours_beyond_the_finder(folder: Path) -> None:
    code = "import sys; print(*sorted(name for name in sys.modules if 'wattledger' in name))"
    result = run_engine(folder, code)
    assert result.stdout.split() == [
        "wattledger_collectors",
        "wattledger_collectors.engines",
        "wattledger_collectors.engines.autoload",
    ]


def test_the_users_own_sitecustomize_runs_too(folder: Path) -> None:
    (folder / "sitecustomize.py").write_text("import sys; sys.flavour = 'theirs'\n")
    code = "import sys, sitecustomize; print(sys.flavour, sitecustomize.__file__)"
    result = run_engine(folder, code)
    assert result.stdout == f"theirs {folder}/sitecustomize.py\n"


def test_an_engine_that_the_users_sitecustomize_imports_is_metered(folder: Path) -> None:
    (folder / "sitecustomize.py").write_text("import llama_cpp.llama\n")
    collector = FakeCollector(folder / "w.sock")
    try:
        run_engine(folder)
    finally:
        collector.stop()
    assert len(collector.finishes()) == 1


def test_a_fault_of_the_users_sitecustomize_is_told_by_python_as_ever(folder: Path) -> None:
    (folder / "sitecustomize.py").write_text("raise ValueError('theirs')\n")
    told = [run_engine(folder, "print('on')", attach=attach) for attach in (False, True)]
    assert told[0].stderr == told[1].stderr != ""
    assert [result.stdout for result in told] == ["on\n", "on\n"]


def test_an_engine_of_another_shape_runs_on(folder: Path) -> None:
    (folder / "llama_cpp" / "llama.py").write_text("def generate(): return 'something else'\n")
    result = run_engine(folder, "from llama_cpp import llama; print(llama.generate())")
    assert result.stdout == "something else\n"
    assert result.stderr.startswith("wattledger: llama_cpp.llama is not metered: ")
    assert len(result.stderr.splitlines()) == 1


def test_an_engine_that_does_not_import_fails_as_before(folder: Path) -> None:
    (folder / "llama_cpp" / "llama.py").write_text("raise ImportError('no libllama.so')\n")
    code = (
        "try: import llama_cpp.llama\n"
        "except ImportError as error: print(error)\n"
        "try: import llama_cpp.absent\n"
        "except ImportError as error: print(error)\n"
    )
    attached, plain = run_engine(folder, code), run_engine(folder, code, attach=False)
    assert attached.stdout == plain.stdout != ""
    assert attached.stderr == ""


def test_a_folder_on_the_path_hooks_nothing_by_itself(folder: Path) -> None:
    environ = attach_environment({"PYTHONPATH": str(folder), "HOME": str(folder)})
    del environ["WATTLEDGER_ATTACH"]
    code = "from llama_cpp import llama; print(hasattr(llama.Llama, '_wattledger_live'))"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=environ, check=True, capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("False\n", "")
