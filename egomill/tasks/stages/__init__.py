"""One file a table, named by the table that it makes. No stage file imports another: they meet in a table."""
