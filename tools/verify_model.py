#!/usr/bin/env python
"""The same as `mae-transfer verify`."""

import sys

from mae_transfer.cli.verify import main

if __name__ == "__main__":
    sys.exit(main())
