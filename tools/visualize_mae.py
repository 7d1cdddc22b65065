#!/usr/bin/env python
"""Pictures of what a masked autoencoder reconstructs: see --help, or docs/pretraining.md."""

import sys

from mae_transfer.cli.visualize import main

if __name__ == "__main__":
    sys.exit(main())
