"""`python -m exactile`: the command line."""

import sys

from exactile.cli import main

if __name__ == "__main__":
    sys.exit(main())
