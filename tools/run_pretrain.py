#!/usr/bin/env python
"""The same as `mae-transfer pretrain`."""

import sys

from mae_transfer.cli.pretrain import main

if __name__ == "__main__":
    sys.exit(main())
