#!/usr/bin/env python
"""The same as `mae-transfer validate`."""

import sys

from mae_transfer.cli.validate import main

if __name__ == "__main__":
    sys.exit(main())
