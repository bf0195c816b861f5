"""Grounds on which several processes exchange real bytes, and the launcher of their ranks."""
