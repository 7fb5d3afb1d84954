"""What `check` tries, by what it is about; pipeline/commands/checking.py puts it together."""
