"""What Skate is measured beside, in the same run: each a program of its own that ends when its stdin closes."""
