"""Programs to read and to run. Each says at its top how to start it."""
