"""General helpers: files, serialization, argument checks, progress, the environment."""
