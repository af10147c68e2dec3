"""Models as scripts and other implementations have them, written for comparisons with ours."""
