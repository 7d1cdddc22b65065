#!/usr/bin/env python
"""The same as `mae-transfer convert`."""

import sys

from mae_transfer.cli.convert import main

if __name__ == "__main__":
    sys.exit(main())
