"""Kafka: the connection, records that are sent and read, and what they mean."""
