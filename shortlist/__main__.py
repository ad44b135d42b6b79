"""`python -m shortlist` is the `shortlist` program."""

from shortlist.commands import main

if __name__ == "__main__":
    main()
