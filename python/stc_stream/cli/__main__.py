"""`python -m stc_stream.cli` is `stc`."""

import sys

from stc_stream.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
