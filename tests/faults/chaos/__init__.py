"""The proof that nothing accepted is lost and nothing happens twice: real processes, seeded faults, a checker.

See docs/faults.md. `python -m tests.faults.chaos --help` runs it; test_chaos.py runs short versions of it.
"""
