"""python -m benchmarks.uploads"""

from benchmarks.uploads.suite import main

if __name__ == "__main__":
    main()
