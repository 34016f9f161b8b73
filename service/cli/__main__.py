"""`python -m service.cli` is `samstudy`."""

import sys

from service.cli.app import main

sys.exit(main())
