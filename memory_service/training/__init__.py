"""Training a generator: data -> objective -> loop."""
