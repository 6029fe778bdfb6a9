"""Mounts: the root filesystem, what config.json mounts in it, and the change of root.

Only the mount API of descriptors is used (fsopen, open_tree, mount_setattr, move_mount): a mount is
made and given its attributes while it is attached nowhere, then attached to a descriptor that was
resolved inside the root. Sources of binds are opened before the first mount, outside the container.
"""
