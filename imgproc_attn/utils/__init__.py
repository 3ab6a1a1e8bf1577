"""Helpers without a subject of their own: files, serialization, checks of arguments, progress, the environment."""
