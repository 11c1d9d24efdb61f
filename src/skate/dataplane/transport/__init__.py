"""The only place that opens a socket: frames over Unix sockets, TCP and memory."""
