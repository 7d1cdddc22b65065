#!/usr/bin/env python
"""The same as `mae-transfer inspect`."""

import sys

from mae_transfer.cli.inspect import main

if __name__ == "__main__":
    sys.exit(main())
