"""The local stack: Redis, MLflow, Ray and the processes of Shortlist, started, watched and stopped together."""
