"""`python -m dtq.testing.bench`: see queue.py."""

from dtq.testing.bench.queue import main

if __name__ == "__main__":
    main()
