"""Floor 2: where processes live. An engine runs entries named by dotted name and never imports what it runs."""
