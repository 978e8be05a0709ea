"""What a pickle would do, found out without doing it."""
