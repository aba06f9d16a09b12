"""Models and services for inference servers that other people wrote; each runs in an environment of its own."""
