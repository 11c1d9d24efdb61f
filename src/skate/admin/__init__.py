"""The REST API: a door to the controller's control calls, nothing more. Entry of its process: ``server:run``."""
