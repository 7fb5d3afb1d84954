"""The commands beside `serve`. cli.py says which module has which command."""
