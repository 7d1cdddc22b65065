#!/usr/bin/env python
"""The same as `mae-transfer report`."""

import sys

from mae_transfer.cli.report import main

if __name__ == "__main__":
    sys.exit(main())
