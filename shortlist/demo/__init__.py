"""`shortlist demo`: the whole platform on real data, by the commands that a user would type."""
