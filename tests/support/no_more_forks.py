"""A module whose import lets the system refuse further processes to the importing one."""

from __future__ import annotations

import os
import resource

resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
if os.getuid() == 0:
    # The limit does not hold for root.
    os.setuid(65534)
