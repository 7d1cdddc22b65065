#!/usr/bin/env python
"""The same as `mae-transfer plan`."""

import sys

from mae_transfer.cli.plan import main

if __name__ == "__main__":
    sys.exit(main())
