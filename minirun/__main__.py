"""Run minirun from a source tree: `python3 -ISB minirun/__main__.py`.

Root is not stopped here from running code that others own: naming this file is asking for it.
"""

import os
import sys

if not __package__:
    # Isolated mode puts nothing of ours on the path. Last: a stdlib name must stay the stdlib's.
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    # Where the environment, or the distribution, keeps what the verbs for people need.
    _prefix = os.path.dirname(os.path.dirname(sys.executable))
    sys.path.append(
        f"{_prefix}/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    )
    sys.path.append("/usr/lib/python3/dist-packages")

from minirun import launcher

if not sys.flags.isolated:
    launcher.console_script()
launcher.start(sys.argv[1:], check=False)
