"""Floor 3: the way of a request, from a proxy or a handle through a router over the wire to a replica."""
