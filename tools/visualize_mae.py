#!/usr/bin/env python
"""The same as `mae-transfer visualize`."""

import sys

from mae_transfer.cli.visualize import main

if __name__ == "__main__":
    sys.exit(main())
