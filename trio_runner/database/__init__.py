"""PostgreSQL: the connection, the schema, and the calls that a runner, an orchestrator and a reader make."""
