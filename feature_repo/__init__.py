"""Feast declarations: entities, sources, feature views, on-demand views and feature services. Nothing here does work."""

from feature_repo.feast_import import QuickFeast

QuickFeast.install()
