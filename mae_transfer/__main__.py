"""`python -m mae_transfer`, the command line; `torchrun -m mae_transfer transfer ...` starts it on several devices."""

import sys

from mae_transfer.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
