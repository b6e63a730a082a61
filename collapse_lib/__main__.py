"""``python -m collapse_lib`` is ``collapse``."""

import sys

from collapse_lib.cli import main

sys.exit(main())
