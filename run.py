#!/usr/bin/env python3
"""Start here: hands over to pipeline/cli.py. `python run.py` serves, `python run.py --help` lists the rest."""

from pipeline.start import main

if __name__ == "__main__":
    main()
