"""`run --rootfs`: from flags to an ordinary OCI bundle on an overlay root filesystem, and back.

bundle      prepare(), which writes it, and discard(), which removes it
config      the flags as config.json: pure, but for what the host offers
defaults    the safe defaults, as data
environment limits security volumes users
            one group of flags each
idrange     the host's user IDs that a container's user namespace is given
overlay     the root filesystem: a shared lower layer, a layer of the container's own
store       the directories below the data directory
"""
