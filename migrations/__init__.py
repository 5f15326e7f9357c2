"""How a database gets this program's tables (installed as `memory_service.migrations`)."""
