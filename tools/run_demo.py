#!/usr/bin/env python
"""The same as `mae-transfer demo`."""

import sys

from mae_transfer.cli.demo import main

if __name__ == "__main__":
    sys.exit(main())
