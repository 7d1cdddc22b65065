#!/usr/bin/env python
"""Make all runs of a suite: see --help, or docs/suites.md."""

import sys

from mae_transfer.cli.suite import main

if __name__ == "__main__":
    sys.exit(main())
