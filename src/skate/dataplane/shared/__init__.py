"""Memory that two processes of one machine see: the bytes of large values lie in it, only where they lie is sent."""
