"""HTTP routes that are not hot: models, experiments, catalogue; FastAPI below the gateway, and OpenAPI for all routes."""
