"""What is loaded of pyroute2, and that the whole of it does as well."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

_LOOK = """
import json, sys
sys.path.insert(0, sys.argv[1])
if sys.argv[2] == "moved":
    import importlib
    usual = importlib.import_module
    def other(name, package=None):
        if name == "pyroute2.iproute.linux" and "pyroute2.ndb" not in sys.modules:
            raise ModuleNotFoundError(name)
        return usual(name, package)
    importlib.import_module = other
elif sys.argv[2] == "loaded":
    import pyroute2
from minirun.network import veth
import pyroute2
print(json.dumps([
    veth.IPRoute.__name__, veth.NFCTSocket.__name__, veth.NetlinkError.__module__,
    hasattr(pyroute2, "NDB"), issubclass(veth.NetlinkError, Exception),
]))
"""


@pytest.mark.parametrize(("how", "whole"), [("usual", False), ("moved", True), ("loaded", True)])
def test_parts_of_pyroute2_or_all_of_it(how: str, whole: bool) -> None:
    words = [sys.executable, "-W", "ignore", "-c", _LOOK, str(ROOT), how]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    route, tracking, errors, has_all, is_error = json.loads(done.stdout)
    assert (route, tracking) == ("IPRoute", "NFCTSocket")
    assert errors == "pyroute2.netlink.exceptions"
    assert has_all is whole
    assert is_error
