"""`python -m wattledger_daemon` is `wattledgerd`."""

from __future__ import annotations

import sys

from wattledger_daemon import main

sys.exit(main())
