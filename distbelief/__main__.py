"""``python -m distbelief``."""

import sys

from distbelief.cli import main

if __name__ == "__main__":
    sys.exit(main())
