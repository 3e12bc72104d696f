"""`python -m fssbench` is the same as the `fssbench` command."""

import sys

from fssbench.cli import main

sys.exit(main())
