"""Rankers: learned orders over a query's candidates, one a file, behind one protocol (`base`)."""
