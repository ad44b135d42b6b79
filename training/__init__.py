"""Splits, metrics, models, candidate sets, rankers, tuning, bundles and the registry."""
