"""Loading: resolve slides, read big chunks, and the loader's main loop."""
