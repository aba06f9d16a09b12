"""The command line: one module for each kind of verb; a verb loads what it needs and nothing more."""
