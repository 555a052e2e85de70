"""Maps: patient files → pieces → map → picture."""
