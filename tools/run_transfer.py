#!/usr/bin/env python
"""Transfer a ViT encoder to a task: see --help, or README.md."""

import sys

from mae_transfer.cli.transfer import main

if __name__ == "__main__":
    sys.exit(main())
