"""``python -m vestige_bridge``: the command line."""

import sys

from vestige_bridge.cli.parser import main

if __name__ == "__main__":
    sys.exit(main())
