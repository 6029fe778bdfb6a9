"""The same root filesystem as a container and as a virtual machine, measured on this machine."""
