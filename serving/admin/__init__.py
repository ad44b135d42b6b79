"""The admin side of the HTTP API: model versions, experiments, items and users. One file a resource, joined in `app`."""
