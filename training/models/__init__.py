"""Retrievers, one model a file. `training.models.base` holds the protocol that each of them implements."""
