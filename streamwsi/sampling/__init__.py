"""Which windows of a slide to look at: samplers, and the regions that they look in.

In: a level, and where to look on the slide.  Out: places of windows.  Reads pixels only to find tissue; knows nothing of chunks
and processes.
"""
