"""Kafka: the connection, the records that are sent and read, and their meaning."""
