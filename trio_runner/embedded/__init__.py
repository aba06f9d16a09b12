"""Real servers for a machine that has none: PostgreSQL, a Kafka broker, an inference service."""
