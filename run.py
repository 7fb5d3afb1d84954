#!/usr/bin/env python
"""Start here: hands over to pipeline/cli.py, by way of pipeline/__main__.py.

`python run.py` serves, `python run.py --help` lists the rest.
"""

from pipeline.__main__ import main

if __name__ == "__main__":
    main()
