"""What the command's end tells: done, done but for what was reported, refused, interrupted."""

DONE, INCOMPLETE, REFUSED, INTERRUPTED = 0, 1, 2, 130
