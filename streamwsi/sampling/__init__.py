"""Where windows lie: on a grid, at random, evenly spread, at given points; on the whole slide or in a region of it.

In: a slide and options.  Out: a table of places.  Reads pixels only where a region is found by looking at the slide; knows
nothing of chunks, sockets or files of results.
"""
