"""`python -m hpcnmt` = the console command."""

import sys

from hpcnmt.cli import main

sys.exit(main())
