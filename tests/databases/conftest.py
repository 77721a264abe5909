from databases.servers import mariadb, postgres

__all__ = ["mariadb", "postgres"]
