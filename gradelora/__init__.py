"""Teach a large open model to score student answers as human raters do."""

__version__ = "0.1.0"
