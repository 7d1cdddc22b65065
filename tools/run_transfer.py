#!/usr/bin/env python
"""The same as `mae-transfer transfer`."""

import sys

from mae_transfer.cli.transfer import main

if __name__ == "__main__":
    sys.exit(main())
