"""A/B experiments: specification, assignment, exposures, outcomes, inference and report. A leaf library."""
