#!/usr/bin/env python
"""The same as `mae-transfer suite`."""

import sys

from mae_transfer.cli.suite import main

if __name__ == "__main__":
    sys.exit(main())
