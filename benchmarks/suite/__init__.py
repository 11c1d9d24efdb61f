"""Skate beside its peers: what is measured, with whom, what should be seen, and how it is shown."""
