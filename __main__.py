"""`python -m vis4mer` is the `vis4mer` command."""

from .cli import main

main()
