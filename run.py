#!/usr/bin/env python
"""Start here: hands over to pipeline/cli.py. `python run.py` serves, `python run.py --help` lists the rest."""

from pipeline.cli import main

if __name__ == "__main__":
    main()
