"""Feast declarations: entities, sources, feature views, on-demand views and feature services. Nothing here does work."""
