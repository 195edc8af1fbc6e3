"""Python imports this at start where `wattledger attach` put its folder on PYTHONPATH.

It switches the engine hooks on, then runs the user's own sitecustomize, which it stands before.
"""

import importlib.machinery
import os
import sys


def _hook_engines():
    if sys.version_info < (3, 11):  # noqa: UP036 - the engine's Python is not ours to choose
        raise RuntimeError("Python 3.11 or newer is needed")
    from wattledger_collectors.engines import autoload

    autoload.enable()


def _run_the_users():
    here = os.path.dirname(__file__)  # noqa: PTH120 - pathlib would slow each start of Python
    others = [entry for entry in sys.path if entry != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is None or spec.loader is None:
        return
    import importlib.util  # 10 ms that each start of Python would pay

    ours = sys.modules["sitecustomize"]
    module = sys.modules["sitecustomize"] = importlib.util.module_from_spec(spec)
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
