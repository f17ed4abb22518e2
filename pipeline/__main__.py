"""``python -m pipeline``: the command line where there is no checkout but the package."""

from pipeline.cli import main

if __name__ == "__main__":
    main()
