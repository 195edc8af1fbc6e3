"""Python imports this at start where `wattledger attach` put its folder on PYTHONPATH.

It switches the engine hooks on, then runs the user's own sitecustomize, which it stands before.
"""

import os
import sys
from importlib.machinery import PathFinder


def _hook_engines():
    if sys.version_info < (3, 11):  # noqa: UP036 - the engine's Python is not ours to choose
        raise RuntimeError("Python 3.11 or newer is needed")
    from wattledger_collectors.engines import autoload

    autoload.enable()


def _run_the_users():
    here = os.path.dirname(__file__)  # noqa: PTH120 - pathlib would slow each start of Python
    others = [entry for entry in sys.path if entry != here]
    spec = PathFinder.find_spec("sitecustomize", others)
    if spec is None or spec.loader is None:
        return
    from importlib.util import module_from_spec  # 10 ms, which few need

    ours = sys.modules["sitecustomize"]
    module = sys.modules["sitecustomize"] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules["sitecustomize"] = ours
        raise


try:
    _hook_engines()
except Exception as error:  # noqa: BLE001 - the engine hook's border
    sys.stderr.write("wattledger: engines are not metered: {}\n".format(error))  # noqa: UP032
_run_the_users()
