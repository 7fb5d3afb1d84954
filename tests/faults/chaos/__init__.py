"""Proves that no accepted upload is lost or done twice: real processes, faults chosen by a seed, and a checker.

See docs/faults.md. `python -m tests.faults.chaos --help` runs it; test_chaos.py runs short versions of it.
"""
