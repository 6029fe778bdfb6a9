"""Control groups, version 2 only: limits, freezing, killing, and what was used.

hierarchy   find the tree, say why there is none, place a container in it
resources   linux.resources as a list of writes: data, no system call
group       one cgroup: apply, add, freeze, kill, remove
cgroupfs    the driver that makes the directory itself (another may ask systemd for a scope)
stats       what a group used, in the shape of `events --stats` and for people
"""
