"""Talking to an inference service over HTTP: one client, and one small pure module per wire protocol."""
