"""What Skate tells those who watch it."""
