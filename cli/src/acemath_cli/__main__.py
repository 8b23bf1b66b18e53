"""`python -m acemath_cli` is the `acemath` command."""

from acemath_cli.entry import main

if __name__ == "__main__":
    main()
