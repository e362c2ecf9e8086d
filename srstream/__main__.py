"""`python -m srstream`: the command line, where its script is not on the path."""

from srstream.cli.main import main

if __name__ == "__main__":
    main()
