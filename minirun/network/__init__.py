"""The bridge network: validate, attach, detach.

A container is attached by OCI hooks in its bundle, so that any runtime gives it the same network:

    plan      what is asked for; writes the hooks and the container's own files into the bundle
    hook      `minirun network attach|detach`, as the runtime calls them
    attach    the order of things, and its undo: one function removes what a lease says
    leases    who has which address and ports; read and written under one lock
    veth      links, addresses, routes (the only importer of pyroute2)
    firewall  the nft table `minirun`, always written as a whole from the leases
    names     resolv.conf and hosts

Everything acts on the network namespace that the caller is in: that is the host.
"""
