"""`python train.py ...` is `nern train ...`."""

import sys

from nern.cli import main

sys.exit(main(["train", *sys.argv[1:]], may_restart=True))
