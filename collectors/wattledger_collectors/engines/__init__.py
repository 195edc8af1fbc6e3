"""Engine hooks: what runs inside an inference engine. Standard library only, and never raises."""
