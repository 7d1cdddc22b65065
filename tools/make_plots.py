#!/usr/bin/env python
"""The same as `mae-transfer plots`."""

import sys

from mae_transfer.cli.plots import main

if __name__ == "__main__":
    sys.exit(main())
