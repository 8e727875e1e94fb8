"""Music genre classification in JAX/Flax: from a folder of MP3s to a network and its report."""

__version__ = "0.1.0"
