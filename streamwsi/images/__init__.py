"""Images in files: how pixels are encoded, how files are named, and the comment in them."""
