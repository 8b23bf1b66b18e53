"""The whole stack on one machine, without root.

    preflight ─► install ─► run ─► supervision (supervisord) ─► redis, reward, policy, gateway
                             │
                             └─► readiness, logs, the sample problem (`acemath solve`)

`settings`, `preflight`, `console` and `install` use the standard library only: they run before anything is installed.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - before anything that an older interpreter cannot even import
    version = ".".join(str(part) for part in sys.version_info[:3])
    sys.exit(f"✗ this is Python {version}: install Python 3.11 and run make PYTHON=python3.11 …")
