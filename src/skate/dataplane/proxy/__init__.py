"""The caller's end for HTTP: connections (``connection``) that share one ``front`` over a Router; entry: ``server``."""
