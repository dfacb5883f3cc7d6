"""The paper as a runnable study."""
