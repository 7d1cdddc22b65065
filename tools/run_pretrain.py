#!/usr/bin/env python
"""Pre-train an encoder to transfer: see --help, or docs/pretraining.md."""

import sys

from mae_transfer.cli.pretrain import main

if __name__ == "__main__":
    sys.exit(main())
