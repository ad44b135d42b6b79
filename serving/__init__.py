"""The serving graph on Ray Serve: gateway, retriever and ranker deployments, cache, precompute and reconciler."""
