"""The commands beside `serve`, in groups: operating, authoring, checking. cli.py puts them together."""
