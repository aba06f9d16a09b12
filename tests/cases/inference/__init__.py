"""Answers of real services, each with its source and what must become of it."""
