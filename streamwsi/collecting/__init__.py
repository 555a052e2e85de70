"""Collecting: the collector that users subclass, ready-made ones, and the collector's main loop."""
