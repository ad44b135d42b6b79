"""The nightly job: from new activity to a promoted version, step by step, resumable; and its schedule."""
