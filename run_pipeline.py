"""The command line: parse, call the pipeline, exit status."""

from pipeline.cli import main

if __name__ == "__main__":
    main()
