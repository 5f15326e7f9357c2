"""Alembic's entry: runs the migrations on the connection it is given, or on the configured URL."""

import os

from alembic import context
from sqlalchemy import Connection

from memory_service.errors import ConfigurationError
from memory_service.storage.migrate import on_database
from memory_service.storage.tables import Base, is_declared

URL_VARIABLE = "MEMORY_SERVICE_DATABASE_URL"


def run(connection: Connection) -> None:
    """Run what Alembic was asked for, inside the connection's transaction."""
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,  # carries the naming convention
        include_name=lambda name, _kind, _parents: is_declared(name),
        render_as_batch=connection.dialect.name == "sqlite",  # SQLite alters by copying
    )
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    raise ConfigurationError(
        "alembic", "does not write SQL scripts here", "run it without --sql, on a database"
    )
given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    url = context.config.attributes.get("url") or os.environ.get(URL_VARIABLE)
    if not url:
        raise ConfigurationError(URL_VARIABLE, "is not set", "set it to the database to migrate")
    on_database(url, run)
