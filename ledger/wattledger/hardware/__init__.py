"""What is known about devices: their specifications and what it took to make them."""
