"""Retry events, expired leases and submitted scenarios become new runners."""
