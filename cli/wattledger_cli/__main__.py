"""`python -m wattledger_cli`: the same as `wattledger`."""

from __future__ import annotations

import sys

from wattledger_cli import main

sys.exit(main())
