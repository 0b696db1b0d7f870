"""Training: optimisers, compiled steps and epochs, and the whole pipeline, ``fnn.fit``."""
