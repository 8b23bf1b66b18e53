"""What the gateway needs from the world, over HTTP and Redis; one file for each vendor."""
