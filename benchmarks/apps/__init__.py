"""What is measured: scripts and deployments as a user would write them."""
