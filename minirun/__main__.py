"""Run minirun from a source tree: `python3 -ISB minirun/__main__.py`.

Root is not stopped here from running code that others own: naming this file is asking for it.
"""

import os
import sys

if not __package__:
    # Isolated mode puts nothing of ours on the path. Last: a stdlib name must stay the stdlib's.
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from minirun import launcher

if not sys.flags.isolated:
    launcher.console_script()
launcher.start(sys.argv[1:], check=False)
