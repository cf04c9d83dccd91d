"""`python evaluate.py ...` is `nern evaluate ...`."""

import sys

from nern.cli import main

sys.exit(main(["evaluate", *sys.argv[1:]]))
