"""Makes ``python -m unite`` the same as ``unite``."""

import sys

from unite.cli import main

if __name__ == "__main__":
    sys.exit(main())
