"""Whether streamwsi can work on this machine and in a folder: checks that try things, and say what is wrong in plain words."""
