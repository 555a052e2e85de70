"""Where to look on a slide: masks, and regions that people have drawn.

In: slides, pictures of masks, annotation files.  Out: masks and polygons, in level-0 pixels.  Knows nothing of windows, chunks
and processes.
"""
