"""An OCI container runtime and sandbox for Linux."""

__version__ = "0.1.0"

# The version of the OCI runtime specification that is implemented, and the oldest that is accepted.
SPEC_VERSION = "1.3.0"
SPEC_VERSION_MIN = "1.0.0"
