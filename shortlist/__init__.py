"""Shortlist, the composition root: settings, the local stack, the command line and the Python client."""
