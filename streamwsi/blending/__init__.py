"""Maps of windows' images: chunks of windows become sums, tile by tile, and sums become blocks of a map.

In: images with the places of their windows.  Out: tiles of sums; finished blocks.  Knows no process, journal or file.
"""
