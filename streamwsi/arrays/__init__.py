"""Arrays of any dimension: windows out of them, and windows put back without seams.

In: anything array-like.  Out: patches and their boxes; arrays.  Knows nothing of slides, sockets or processes.
"""
