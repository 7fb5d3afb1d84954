"""The checks of the command `check`, by subject; pipeline/commands/checking.py runs them."""
