"""What this machine is, and which machines it can run: the report of `minirun virt`."""
