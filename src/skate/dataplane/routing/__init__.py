"""Pure: which replica, queue or refuse, which application. Snapshots and numbers in, decisions out."""
