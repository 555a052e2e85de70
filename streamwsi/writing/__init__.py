"""Writing: the journal of a run under way, one module per file format, publication, and the writer's main loop."""
