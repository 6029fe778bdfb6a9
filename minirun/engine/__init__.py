"""`run --rootfs`: from flags to an ordinary OCI bundle on an overlay root filesystem, and back.

bundle      prepare(), which writes it, and discard(), which removes it
request     the flags, read and checked together; nothing is changed
config      the request as config.json
defaults    the safe defaults, as data
environment, limits, security, users, volumes
            one group of flags each
idrange     the host's user IDs that a container's user namespace is given
overlay     the root filesystem: a shared lower layer, a layer of the container's own
places      the directories below the data directory
"""
