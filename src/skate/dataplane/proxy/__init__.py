"""The caller's end for HTTP: an ASGI application over a Router (``app``), served by Granian (``server``)."""
