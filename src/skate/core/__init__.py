"""Floor 1: the vocabulary. Standard library and msgspec only; imports nothing of Skate above it."""
