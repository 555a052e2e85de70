"""The pipeline: the only place that knows all stages."""
