"""Pure: bytes in, events out; events in, bytes out. No sockets, no clock, no tasks."""
