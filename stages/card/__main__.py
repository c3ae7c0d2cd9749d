"""Command line of the card: `python -m stages.card`."""

from stages.start import helped

if __name__ == "__main__" and not helped("card"):
    from stages.card.making import main  # here, as it imports libraries that take seconds

    main()
