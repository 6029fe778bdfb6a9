"""An OCI container runtime and sandbox for Linux."""

__version__ = "0.1.0"
