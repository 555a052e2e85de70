"""What makes and checks the documents; not part of the package."""
