"""Rectiflow."""
