"""Floor 4: the way of a decision: observe, decide (pure, in ``decide``), then store, publish and perform."""
