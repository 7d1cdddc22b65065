#!/usr/bin/env python
"""The same as `mae-transfer recipe`."""

import sys

from mae_transfer.cli.recipe import main

if __name__ == "__main__":
    sys.exit(main())
