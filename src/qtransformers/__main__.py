"""`python -m qtransformers` is the command."""

import sys

from qtransformers.cli import main

sys.exit(main())
