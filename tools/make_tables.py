#!/usr/bin/env python
"""The same as `mae-transfer tables`."""

import sys

from mae_transfer.cli.tables import main

if __name__ == "__main__":
    sys.exit(main())
