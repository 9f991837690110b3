"""Measuring what compression costs in answers."""
