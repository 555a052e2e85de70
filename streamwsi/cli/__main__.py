"""``python -m streamwsi.cli``: the console script, where it is not on the path."""

from streamwsi.cli.main import main

main()
