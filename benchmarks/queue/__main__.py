"""python -m benchmarks.queue"""

from benchmarks.queue.suite import main

if __name__ == "__main__":
    main()
